// SPDX-License-Identifier: Apache-2.0
/// The matrix micro-kernels as what is above them calls them, and what those of all instruction sets share.
/// They are in gemm_dispatch.hpp, or, with DSV4_COMPILED_KERNELS, in the one file that has
/// <dsv4/cpu_kernels.hpp>.
#pragma once

#include <dsv4/ops/cpu/instruction_set.hpp>

#include <cstdint>

namespace dsv4::detail {

/// Bytes of a row that one chunk of a dot product covers: six rows of x fit the first-level cache.
inline constexpr std::int64_t chunk_bytes = 4096;

/// Products that sum over rows (a b, a^T b) go block by block of the result: outer_block rows of a, whose
/// part stays in the second-level cache, by a panel of b at a time, outer_width columns or less; at most
/// outer_depth steps of the sum at a time, so that the panel stays in the first-level cache meanwhile.
inline constexpr std::int64_t outer_block = 192, outer_width = 64, outer_depth = 256;
/// Steps between tiles that are left empty: tiles at multiples of 4096 bytes would push each other out.
inline constexpr std::int64_t outer_gap = 4;
/// Elements of scratch that one such block needs.
inline constexpr std::int64_t outer_scratch = (outer_block + outer_width) * (outer_depth + outer_gap);
/// Where the block that comes next begins: k rows of b, m of c.
template <class T>
struct outer_next {
  const T *b = nullptr, *c = nullptr;
  std::int64_t ldb = 0, k = 0, ldc = 0, m = 0;
};

/// Has the part of row j, `Bytes` of the bytes from `at` on, brought near: whole lines, the first row of so
/// many that fill one. Products of few rows read each weight once, several rows of them side by side: the
/// hardware does not see in time where those streams begin and end, so the kernels fetch one tile of rows
/// ahead, in the order of addresses and at the pace of their reading. Called row by row: lines asked for in
/// bursts wait for each other, and all later instructions with them.
template <int Bytes>
inline void fetch_ahead(const void* at, int j) {
  static_assert(Bytes % 64 == 0 || 64 % Bytes == 0);
  constexpr int rows = Bytes < 64 ? 64 / Bytes : 1;
  if (j % rows == 0)
    for (int i = 0; i < Bytes; i += 64)
      __builtin_prefetch(static_cast<const char*>(at) + j * Bytes + i, 0, 2);
  // GCC takes a function that does nothing but prefetch for one without effects, and drops its calls.
  asm volatile("");
}

/// Single-threaded kernels on raw row-major arrays, of one instruction set, which must be supported. What
/// each computes, and of which arguments, is told in gemm_tile.hpp and softmax_tile.hpp. Where they are not
/// compiled elsewhere, a kernel is compiled where it is called: a program that needs one does not pay for
/// all.
template <class T>
class cpu_kernels {
 public:
  explicit cpu_kernels(instruction_set set) : set_(set) {}

  /// y[n, o] = x[n, k] w[o, k]^T; `next` rows of w behind these are needed soon.
  void gemm_nt(const T* x, std::int64_t ldx, std::int64_t n, const T* w, std::int64_t ldw, std::int64_t o,
               std::int64_t k, T* y, std::int64_t ldy, std::int64_t next = 0) const;
  /// c[m, n] (+)= a[m, k] b[k, n]
  void gemm_nn(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t k,
               std::int64_t n, T* c, std::int64_t ldc, bool add) const;
  /// c[m, n] (+)= a[k, m]^T b[k, n]
  void gemm_tn(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t k,
               std::int64_t n, T* c, std::int64_t ldc, bool add) const;
  /// gemm_nn or, when `transposed`, gemm_tn for blocks of large matrices, m at most outer_block; scratch of
  /// outer_scratch elements; `next` is needed soon.
  void block(bool transposed, const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb,
             std::int64_t k, std::int64_t n, T* c, std::int64_t ldc, bool add, T* scratch,
             const outer_next<T>& next = {}) const;
  /// c[n] = sum_m a[m] max(0, b[m, n])
  void weighted_relu(const T* a, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t n, T* c) const;
  /// One step of an online softmax; returns the factor for what was accumulated before.
  T softmax_step(T* s, std::int64_t n, T scale, T& top, T& sum) const;
  /// y[j] = 1 / (1 + e^-x[j]); y may be x.
  void sigmoid(const T* x, T* y, std::int64_t n) const;
  /// s[j] becomes the weight e^(s[j] - lse), dp[j] the gradient s[j] (dp[j] - delta) of its score.
  void softmax_gradient(T* s, T* dp, std::int64_t n, T lse, T delta) const;

 private:
  instruction_set set_;
};

/// The kernels of the best instruction set of this machine.
template <class T>
const cpu_kernels<T>& best_kernels();

}  // namespace dsv4::detail
