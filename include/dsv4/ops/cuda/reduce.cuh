// SPDX-License-Identifier: Apache-2.0
/// Sums over the rows of a matrix, as gradients of parameters are, in an order that depends on its size
/// alone.
#pragma once

#include <dsv4/ops/cuda/common.cuh>

#include <cstdint>
#include <string_view>

namespace dsv4::detail {

inline constexpr int row_sum_parts = 64;

/// partial[part, c] = sum of term(row, c) over the part's rows. Block (32 columns, part), 8 rows at a time.
template <class A, class Term>
__global__ void __launch_bounds__(256)
    row_sum_kernel(Term term, std::int64_t rows, std::int64_t columns, A* partial) {
  wait_for_previous_kernels();
  __shared__ A sums[8][33];
  const std::int64_t c = std::int64_t{blockIdx.x} * 32 + threadIdx.x;
  const std::int64_t per = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * per,
                     end = min(rows, begin + per);
  A sum = 0;
  for (std::int64_t r = begin + threadIdx.y; c < columns && r < end; r += 8) sum += term(r, c);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && c < columns) {
    for (int i = 1; i < 8; ++i) sum += sums[i][threadIdx.x];
    partial[blockIdx.y * columns + c] = sum;
  }
}

/// to[c] += sum of partial[part, c], parts in ascending order.
template <class T, class A>
__global__ void __launch_bounds__(256)
    add_row_sums_kernel(const A* partial, int parts, std::int64_t columns, T* to) {
  wait_for_previous_kernels();
  const std::int64_t c = global_thread();
  if (c >= columns) return;
  A sum = 0;
  for (int i = 0; i < parts; ++i) sum += partial[i * columns + c];
  to[c] = narrowed<T>(widened<A>(to[c]) + sum);
}

/// to[c] += sum over rows of term(row, c), a device function object.
template <class T, class Term>
void add_row_sums(const exec::cuda& p, std::string_view where, basic_workspace<space::device>& w,
                  const Term& term, std::int64_t rows, const vector_view<T, space::device>& to) {
  using A = accumulator<T>;
  const std::int64_t columns = to.extent[0];
  if (rows == 0 || columns == 0) return;
  const workspace_scope scope(w);
  const int parts = static_cast<int>(std::clamp<std::int64_t>(rows / 16, 1, row_sum_parts));
  A* const partial = take<A>(w, std::int64_t{parts} * columns).data;
  p.launch(where, row_sum_kernel<A, Term>,
           dim3(static_cast<unsigned>(ceil_div(columns, 32)), static_cast<unsigned>(parts)), dim3(32, 8), 0,
           term, rows, columns, partial);
  p.launch(where, add_row_sums_kernel<T, A>, dim3(static_cast<unsigned>(ceil_div(columns, 256))), 256, 0,
           partial, parts, columns, to.data);
}

/// Sets a matrix to 0.
template <class T>
__global__ void __launch_bounds__(256) clear_kernel(matrix_view<T, space::device> x) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < x.extent[0] * x.extent[1]; i += global_threads())
    x(i / x.extent[1], i % x.extent[1]) = T{};
}
template <class T>
void clear(const exec::cuda& p, std::string_view where, const matrix_view<T, space::device>& x) {
  if (x.data && x.size() > 0) p.launch(where, clear_kernel<T>, loop_grid(p, x.size(), 256), 256, 0, x);
}

}  // namespace dsv4::detail
