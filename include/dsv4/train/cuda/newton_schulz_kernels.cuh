// SPDX-License-Identifier: Apache-2.0
/// What Newton-Schulz on the GPU does element by element, beside its products.
#pragma once

#include <dsv4/ops/cuda/common.cuh>

#include <cstdint>

namespace dsv4::detail {

inline constexpr int newton_schulz_parts = 512;

/// partial[b, part] = a sum of squares: of every gridDim.x-th 1024 columns of x[b]. Block (part, matrix).
template <class T>
__global__ void __launch_bounds__(256)
    newton_schulz_squares_kernel(tensor_view<const T, space::device> x, double* partial, bool vectors) {
  wait_for_previous_kernels();
  __shared__ double sums[8];
  const auto own = x[blockIdx.y];
  const std::int64_t columns = own.extent[1], chunks = (columns + 1023) / 1024;
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = blockIdx.x; i < own.extent[0] * chunks; i += gridDim.x) {
    const std::int64_t j = i % chunks * 1024 + 4 * threadIdx.x;
    const T* const from = own.data + i / chunks * own.stride[0] + j;
    pack<T, 4> values{};
    if (vectors && j + 4 <= columns) {
      values = *reinterpret_cast<const pack<T, 4>*>(from);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (j + k < columns) values.value[k] = from[k];
    }
    for (const T value : values.value) sum += static_cast<double>(value) * static_cast<double>(value);
  }
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) partial[std::int64_t{blockIdx.y} * newton_schulz_parts + blockIdx.x] = sum;
}

/// factor[b] = 1 / (norm + epsilon), in place of the first of `parts` partial sums. Block (matrix).
template <class Sum>
__global__ void __launch_bounds__(128) newton_schulz_factor_kernel(Sum* partial, int parts, double epsilon) {
  wait_for_previous_kernels();
  __shared__ double sums[4];
  Sum* const own = partial + std::int64_t{blockIdx.x} * newton_schulz_parts;
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += 128) sum += own[i];
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) own[0] = 1 / (sqrt(sum) + epsilon);
}

/// to[b] = scale factor[b] from[b], where factor is the first of each matrix's partial sums, or 1 without
/// them. `to` may be wider than `from`: what is left of its rows becomes 0. Block (1024 columns, row,
/// matrix).
template <class To, class From>
__global__ void __launch_bounds__(256)
    scaled_copy_kernel(tensor_view<const From, space::device> from, tensor_view<To, space::device> to,
                       const double* factors, double scale, bool vectors) {
  wait_for_previous_kernels();
  const std::int64_t j = (std::int64_t{blockIdx.x} * 256 + threadIdx.x) * 4, columns = from.extent[2];
  if (j >= to.extent[2]) return;
  using A = accumulator<From>;
  const A factor =
      static_cast<A>(scale * (factors ? factors[std::int64_t{blockIdx.z} * newton_schulz_parts] : 1.0));
  const From* const source = from.data + blockIdx.z * from.stride[0] + blockIdx.y * from.stride[1] + j;
  To* const target = to.data + blockIdx.z * to.stride[0] + blockIdx.y * to.stride[1] + j;
  const auto scaled = [&](From v) { return narrowed<To>(widened<A>(v) * factor); };
  if (vectors && j + 4 <= columns) {
    const auto in = *reinterpret_cast<const pack<From, 4>*>(source);
    pack<To, 4> out;
#pragma unroll
    for (int k = 0; k < 4; ++k) out.value[k] = scaled(in.value[k]);
    *reinterpret_cast<pack<To, 4>*>(target) = out;
    return;
  }
  for (int k = 0; k < 4 && j + k < to.extent[2]; ++k) target[k] = j + k < columns ? scaled(source[k]) : To{};
}

/// The same of from[b]^T. Block (32 columns of `to`, 32 rows, matrix) of 32 x 8 threads.
template <class To, class From>
__global__ void __launch_bounds__(256)
    scaled_transpose_kernel(tensor_view<const From, space::device> from, tensor_view<To, space::device> to,
                            const double* factors, double scale) {
  wait_for_previous_kernels();
  using A = accumulator<From>;
  __shared__ A tile[32][33];
  const A factor =
      static_cast<A>(scale * (factors ? factors[std::int64_t{blockIdx.z} * newton_schulz_parts] : 1.0));
  const auto source = from[blockIdx.z];
  const auto target = to[blockIdx.z];
  const std::int64_t column = std::int64_t{blockIdx.x} * 32, row = std::int64_t{blockIdx.y} * 32;
  for (int k = static_cast<int>(threadIdx.y); k < 32; k += 8) {
    const std::int64_t i = column + k, j = row + threadIdx.x;
    tile[k][threadIdx.x] = i < source.extent[0] && j < source.extent[1] ? widened<A>(source(i, j)) : A(0);
  }
  __syncthreads();
  for (int k = static_cast<int>(threadIdx.y); k < 32; k += 8) {
    const std::int64_t i = row + k, j = column + threadIdx.x;
    if (i < target.extent[0] && j < target.extent[1])
      target(i, j) = narrowed<To>(tile[threadIdx.x][k] * factor);
  }
}

template <class To, class From>
void scaled_copy(const exec::cuda& p, const tensor_view<const From, space::device>& from,
                 const tensor_view<To, space::device>& to, const double* factors, double scale,
                 bool transposing) {
  const auto count = [](std::int64_t n) { return static_cast<unsigned>(n); };
  if (transposing) {
    p.launch("newton_schulz", scaled_transpose_kernel<To, From>,
             dim3(count(ceil_div(to.extent[2], 32)), count(ceil_div(to.extent[1], 32)), count(to.extent[0])),
             dim3(32, 8), 0, from, to, factors, scale);
  } else {
    p.launch("newton_schulz", scaled_copy_kernel<To, From>,
             dim3(count(ceil_div(to.extent[2], 1024)), count(to.extent[1]), count(to.extent[0])), 256, 0,
             from, to, factors, scale, all_vectorisable(from, to));
  }
}

/// s = a I + b A + c S, element by element, for dense (B, n, n).
template <class T>
__global__ void __launch_bounds__(256)
    newton_schulz_polynomial_kernel(T a, T b, T c, const T* gram, T* s, std::int64_t n, std::int64_t count) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < count; i += global_threads())
    s[i] = c * s[i] + b * gram[i] + (i / n % n == i % n ? a : T(0));
}

/// y[b] += shift I. Block (256 elements of the diagonal, matrix).
template <class E>
__global__ void __launch_bounds__(256)
    newton_schulz_shift_kernel(E* y, std::int64_t n, std::int64_t stride, float shift) {
  wait_for_previous_kernels();
  const std::int64_t i = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i >= n) return;
  E& of = y[(blockIdx.y * n + i) * stride + i];
  of = narrowed<E>(widened<float>(of) + shift);
}

}  // namespace dsv4::detail
