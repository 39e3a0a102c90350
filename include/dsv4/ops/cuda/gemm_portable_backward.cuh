// SPDX-License-Identifier: Apache-2.0
/// Gradients of matrix products for every pair of storage types, over the tiles of gemm_portable.cuh.
#pragma once

#include <dsv4/ops/cuda/gemm_portable.cuh>

#include <string_view>

namespace dsv4::detail {

/// blockIdx.z is the group of channels: dx_g = dy_g weight_g.
template <class T, class W>
__global__ void __launch_bounds__(gemm_threads)
    batched_dx_kernel(tensor_view<const T, space::device> dy, W weight, tensor_view<T, space::device> dx) {
  wait_for_previous_kernels();
  const std::int64_t g = blockIdx.z;
  const auto own = middle(dx, g);
  const transposed matrix(weight[g]);
  for (std::int64_t row = std::int64_t{blockIdx.y} * gemm_tile; row < own.extent[0];
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(middle(dy, g), matrix, own, row, std::int64_t{blockIdx.x} * gemm_tile,
                          own.extent[0]);
}

/// dweight_g += dy_g^T x_g.
template <class T>
__global__ void __launch_bounds__(gemm_threads)
    batched_dweight_kernel(tensor_view<const T, space::device> dy, tensor_view<const T, space::device> x,
                           tensor_view<T, space::device> dweight) {
  wait_for_previous_kernels();
  const std::int64_t g = blockIdx.z;
  const auto own = dweight[g];
  const transposed left(middle(dy, g)), right(middle(x, g));
  for (std::int64_t row = std::int64_t{blockIdx.y} * gemm_tile; row < own.extent[0];
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(left, right, own, row, std::int64_t{blockIdx.x} * gemm_tile, own.extent[0], true);
}

/// blockIdx.z is the expert: dx = dy weight_e, or dx += it, for its rows.
template <class T, class W>
__global__ void __launch_bounds__(gemm_threads)
    grouped_dx_kernel(matrix_view<const T, space::device> dy,
                      vector_view<const std::int64_t, space::device> offsets, W weight,
                      matrix_view<T, space::device> dx, bool add) {
  wait_for_previous_kernels();
  const std::int64_t e = blockIdx.z, end = offsets(e + 1);
  for (std::int64_t row = offsets(e) + std::int64_t{blockIdx.y} * gemm_tile; row < end;
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(dy, transposed(weight[e]), dx, row, std::int64_t{blockIdx.x} * gemm_tile, end, add);
}

/// dweight_e += dy^T x over its rows; an expert without rows keeps its gradient.
template <class T, class X>
__global__ void __launch_bounds__(gemm_threads)
    grouped_dweight_kernel(matrix_view<const T, space::device> dy,
                           vector_view<const std::int64_t, space::device> offsets, X x,
                           tensor_view<T, space::device> dweight) {
  wait_for_previous_kernels();
  const std::int64_t e = blockIdx.z, begin = offsets(e), rows = offsets(e + 1) - begin;
  if (rows == 0) return;
  const auto own = dweight[e];
  const transposed left(dy.rows(begin, rows));
  const transposed right(x.rows(begin, rows));
  for (std::int64_t row = std::int64_t{blockIdx.y} * gemm_tile; row < own.extent[0];
       row += std::int64_t{gridDim.y} * gemm_tile)
    gemm_tile_portable<T>(left, right, own, row, std::int64_t{blockIdx.x} * gemm_tile, own.extent[0], true);
}

inline dim3 gemm_grid(std::int64_t rows, std::int64_t columns, std::int64_t groups,
                      std::int64_t most = 65535) {
  return dim3(gemm_tiles(columns), gemm_tiles(rows, most), static_cast<unsigned>(groups));
}

}  // namespace dsv4::detail
