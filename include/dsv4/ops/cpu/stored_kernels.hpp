// SPDX-License-Identifier: Apache-2.0
/// The tables of kernels on narrow formats that every instruction set fills, and what they share. The kernels
/// are in stored_dispatch.hpp, or, with DSV4_COMPILED_KERNELS, in the one file that has
/// <dsv4/cpu_kernels.hpp>.
#pragma once

#include <dsv4/exec/cpu.hpp>
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/block_scaled.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

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

/// Single-threaded kernels on matrices stored as `W`, of one instruction set, which must be supported; see
/// stored_tile.hpp for what each computes.
template <class T, class W>
class stored_kernels {
 public:
  using matrix = storage_matrix<const W>;

  explicit stored_kernels(instruction_set set) : set_(set) {}
  /// y[n, o] = x[n, k] w[o, k]^T, o at most stored_block_rows; scratch of stored_scratch<T> elements.
  void product(const T* x, std::int64_t ldx, std::int64_t n, const matrix& w, T* scratch, T* y,
               std::int64_t ldy) const;
  /// Columns [c, c + n) of all rows of w, c a multiple of a chunk, n at most one.
  void decode(const matrix& w, std::int64_t c, std::int64_t n, T* to, std::int64_t ldt) const;

 private:
  instruction_set set_;
};

/// The kernels of the best instruction set of this machine.
template <class T, class W>
const stored_kernels<T, W>& best_stored_kernels();

/// All of a stored matrix as T, dense.
template <class T, class X>
void decode_rows(const storage_matrix<const X>& x, T* to) {
  const std::int64_t k = x.extent[1], chunk = chunk_bytes / std::int64_t{sizeof(T)};
  for (std::int64_t c = 0; c < k; c += chunk)
    best_stored_kernels<T, X>().decode(x, c, std::min(chunk, k - c), to + c, k);
}

/// Single-threaded kernels on blocks of `F`, see quantise_lanes.hpp; null where one value at a time is all
/// there is.
template <class F>
struct quantise_kernels {
  bool (*quantise)(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t count, std::uint8_t* to,
                   std::int64_t ldt, e8m0& scale) = nullptr;
  bool (*round_trip)(float* x, std::int64_t count) = nullptr;
};
template <class F>
quantise_kernels<F> best_quantise_kernels();

/// Whether there are kernels for products in bf16 of weights `W` and inputs `X`.
template <class T, class W, class X>
inline constexpr bool has_bf16_products = (DSV4_X86_KERNELS || DSV4_COMPILED_KERNELS) &&
                                          std::is_same_v<T, float>&& std::is_same_v<X, fp8_activation> &&
                                          (std::is_same_v<W, fp8_weight> || std::is_same_v<W, mxfp4> ||
                                           std::is_same_v<W, mxfp4_ocp>);
/// Whether there are, and this machine can.
template <class T, class W, class X>
bool bf16_products();

/// One product y[first + i, o] = x[first + i, k] w[o, k]^T, i < rows, of several that share x and y.
template <class W>
struct bf16_problem {
  std::int64_t first, rows;
  storage_matrix<const W> w;
};
/// Products in bf16, where bf16_products.
template <class W, class X>
void bf16_gemm_nt(const exec::cpu& p, const storage_matrix<const X>& x, const matrix_view<float>& y,
                  std::span<const bf16_problem<W>> problems);

}  // namespace dsv4::detail
