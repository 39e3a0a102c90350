// SPDX-License-Identifier: Apache-2.0
/// The table of matrix kernels for narrow weights that every instruction set fills, and what they share.
#pragma once

#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/block_scaled.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>
#include <dsv4/ops/cpu/row_streams.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4::detail {

/// Rows of weights that the kernels below take at a time, at most.
inline constexpr std::int64_t stored_block_rows = 64;
/// Elements from one row of scratch to the next: not a multiple of 4096 bytes, which would make all rows
/// share a few lines of the first-level cache.
template <class T>
inline constexpr std::int64_t scratch_stride = (chunk_bytes + 64) / std::int64_t{sizeof(T)};
/// Elements of scratch that a product needs.
template <class T>
inline constexpr std::int64_t stored_scratch = stored_block_rows* scratch_stride<T>;

/// Single-threaded kernels on matrices stored as `W`; see stored_tile.hpp for what each computes.
template <class T, class W>
struct stored_kernels {
  using matrix = storage_matrix<const W>;
  /// y[n, o] = x[n, k] w[o, k]^T, o at most stored_block_rows; scratch of stored_scratch<T> elements.
  void (*product)(const T* x, std::int64_t ldx, std::int64_t n, const matrix& w, T* scratch, T* y,
                  std::int64_t ldy);
  /// Columns [c, c + n) of all rows of w, c a multiple of a chunk, n at most one.
  void (*decode)(const matrix& w, std::int64_t c, std::int64_t n, T* to, std::int64_t ldt);
};

}  // namespace dsv4::detail
