// SPDX-License-Identifier: Apache-2.0
/// Matrix products for every pair of storage types, by plain multiply-adds over tiles in shared memory.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <string_view>

namespace dsv4::detail {

inline constexpr int gemm_tile = 64;   ///< rows and columns of y per block
inline constexpr int gemm_depth = 16;  ///< inner extent per step
inline constexpr int gemm_threads = 256;

/// Element (r, c) of a matrix of whatever storage, as an accumulator.
template <class A, class M>
__device__ __forceinline__ A element(const M& m, std::int64_t r, std::int64_t c) {
  return widened<A>(m(r, c));
}

/// A matrix with its axes swapped.
template <class M>
struct transposed {
  M m;
  __host__ __device__ explicit transposed(const M& of) : m(of), extent{of.extent[1], of.extent[0]} {}
  __device__ auto operator()(std::int64_t r, std::int64_t c) const { return m(c, r); }
  std::int64_t extent[2];
};

/// One tile of y = x weight^T, or of y += x weight^T, from row `row` and column `column`; the rows end at
/// `rows`. A thread has 4 x 4 elements, 16 apart.
template <class T, class X, class W>
__device__ void gemm_tile_portable(const X& x, const W& weight, const matrix_view<T, space::device>& y,
                                   std::int64_t row, std::int64_t column, std::int64_t rows,
                                   bool add = false) {
  using A = accumulator<T>;
  __shared__ A left[gemm_depth][gemm_tile + 1], right[gemm_depth][gemm_tile + 1];
  const std::int64_t inner = x.extent[1], columns = y.extent[1];
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  A sum[4][4] = {};
  for (std::int64_t base = 0; base < inner; base += gemm_depth) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < gemm_tile * gemm_depth; i += gemm_threads) {
      const int r = i / gemm_depth, c = i % gemm_depth;
      const bool in = base + c < inner;
      left[c][r] = in && row + r < rows ? element<A>(x, row + r, base + c) : A(0);
      right[c][r] = in && column + r < columns ? element<A>(weight, column + r, base + c) : A(0);
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < gemm_depth; ++c) {
      A a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = left[c][ty + 16 * i], b[i] = right[c][tx + 16 * i];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t r = row + ty + 16 * i, c = column + tx + 16 * j;
      if (r < rows && c < columns) y(r, c) = narrowed<T>((add ? widened<A>(y(r, c)) : A(0)) + sum[i][j]);
    }
}

template <class T, class X, class W>
__global__ void __launch_bounds__(gemm_threads)
    linear_kernel(X x, W weight, matrix_view<T, space::device> y, bool add) {
  wait_for_previous_kernels();
  for (std::int64_t row = std::int64_t{blockIdx.y} * gemm_tile; row < y.extent[0];
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(x, weight, y, row, std::int64_t{blockIdx.x} * gemm_tile, y.extent[0], add);
}

/// Axis `axis` of a rank-3 view held fixed at `i`.
template <class T>
__host__ __device__ matrix_view<T, space::device> middle(const tensor_view<T, space::device>& v,
                                                         std::int64_t i) {
  matrix_view<T, space::device> m;
  m.data = v.data + i * v.stride[1];
  m.extent[0] = v.extent[0], m.extent[1] = v.extent[2];
  m.stride[0] = v.stride[0], m.stride[1] = v.stride[2];
  return m;
}

template <class T, class W>
__global__ void __launch_bounds__(gemm_threads)
    batched_linear_kernel(tensor_view<const T, space::device> x, W weight, tensor_view<T, space::device> y) {
  wait_for_previous_kernels();
  const std::int64_t g = blockIdx.z;
  const auto own = middle(y, g);
  for (std::int64_t row = std::int64_t{blockIdx.y} * gemm_tile; row < own.extent[0];
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(middle(x, g), weight[g], own, row, std::int64_t{blockIdx.x} * gemm_tile,
                          own.extent[0]);
}

/// blockIdx.z is the expert: it looks up its own rows, so that the host need not know them.
template <class T, class X, class W>
__global__ void __launch_bounds__(gemm_threads)
    grouped_linear_kernel(X x, vector_view<const std::int64_t, space::device> offsets, W weight,
                          matrix_view<T, space::device> y) {
  wait_for_previous_kernels();
  const std::int64_t e = blockIdx.z, end = offsets(e + 1);
  for (std::int64_t row = offsets(e) + std::int64_t{blockIdx.y} * gemm_tile; row < end;
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(x, weight[e], y, row, std::int64_t{blockIdx.x} * gemm_tile, end);
}

inline unsigned gemm_tiles(std::int64_t extent, std::int64_t most = 65535) {
  return static_cast<unsigned>(std::min(ceil_div(extent, gemm_tile), most));
}

template <class T, class X, class W>
void launch_linear(const exec::cuda& p, std::string_view where, const X& x, const W& weight,
                   const matrix_view<T, space::device>& y, bool add = false) {
  p.launch(where, linear_kernel<T, X, W>, dim3(gemm_tiles(y.extent[1]), gemm_tiles(y.extent[0])),
           gemm_threads, 0, x, weight, y, add);
}

template <class T, class W>
void launch_batched_linear(const exec::cuda& p, std::string_view where,
                           const tensor_view<const T, space::device>& x, const W& weight,
                           const tensor_view<T, space::device>& y) {
  p.launch(where, batched_linear_kernel<T, W>,
           dim3(gemm_tiles(y.extent[2]), gemm_tiles(y.extent[0]), static_cast<unsigned>(y.extent[1])),
           gemm_threads, 0, x, weight, y);
}

template <class T, class X, class W>
void launch_grouped_linear(const exec::cuda& p, std::string_view where, const X& x,
                           const vector_view<const std::int64_t, space::device>& offsets, const W& weight,
                           const matrix_view<T, space::device>& y) {
  // One expert may have all rows; up to eight of its tiles are worked on at once.
  p.launch(where, grouped_linear_kernel<T, X, W>,
           dim3(gemm_tiles(y.extent[1]), gemm_tiles(y.extent[0], 8), static_cast<unsigned>(weight.extent[0])),
           gemm_threads, 0, x, offsets, weight, y);
}

}  // namespace dsv4::detail
