// SPDX-License-Identifier: Apache-2.0
/// The table of matrix micro-kernels that every instruction set fills.
#pragma once

#include <cstdint>

/// Asks for full unrolling of the register tile loops, whatever the optimisation level.
#define DSV4_UNROLL _Pragma("GCC unroll 8")

namespace dsv4::detail {

/// Bytes of a row that one chunk of a dot product covers: six rows of x fit the first-level cache.
inline constexpr std::int64_t chunk_bytes = 4096;

/// Products that sum over rows (a b, a^T b) go block by block of the result, at most outer_block rows and
/// columns, and outer_depth rows of b at a time: a panel of b stays in the second-level cache meanwhile.
inline constexpr std::int64_t outer_block = 192, outer_depth = 256;
/// Elements of scratch that one such block needs.
inline constexpr std::int64_t outer_scratch = 2 * outer_block * outer_depth;

/// Has the `bytes` from `at` on brought near, a multiple of 64. Products of few rows read each weight once,
/// several rows of them side by side: the hardware does not see in time where those streams begin and end, so
/// the kernels fetch one tile of rows ahead, in the order of addresses and at the pace of their reading.
template <int Bytes>
inline void fetch_ahead(const void* at) {
  static_assert(Bytes % 64 == 0);
  DSV4_UNROLL for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(static_cast<const char*>(at) + i);
}

/// Single-threaded kernels on raw row-major arrays; see gemm_tile.hpp for what each computes.
template <class T>
struct cpu_kernels {
  /// y[n, o] = x[n, k] w[o, k]^T
  void (*gemm_nt)(const T* x, std::int64_t ldx, std::int64_t n, const T* w, std::int64_t ldw, std::int64_t o,
                  std::int64_t k, T* y, std::int64_t ldy);
  /// c[m, n] (+)= a[m, k] b[k, n]
  void (*gemm_nn)(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t k,
                  std::int64_t n, T* c, std::int64_t ldc, bool add);
  /// c[m, n] (+)= a[k, m]^T b[k, n]
  void (*gemm_tn)(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t k,
                  std::int64_t n, T* c, std::int64_t ldc, bool add);
  /// The same two for blocks of large matrices, m and n at most outer_block; scratch of outer_scratch
  /// elements.
  void (*block_nn)(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t k,
                   std::int64_t n, T* c, std::int64_t ldc, bool add, T* scratch);
  void (*block_tn)(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t k,
                   std::int64_t n, T* c, std::int64_t ldc, bool add, T* scratch);
  /// c[n] = sum_m a[m] max(0, b[m, n])
  void (*weighted_relu)(const T* a, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t n, T* c);
  /// One step of an online softmax; returns the factor for what was accumulated before.
  T (*softmax_step)(T* s, std::int64_t n, T scale, T& top, T& sum);
  /// s[j] becomes the weight e^(s[j] - lse), dp[j] the gradient s[j] (dp[j] - delta) of its score.
  void (*softmax_gradient)(T* s, T* dp, std::int64_t n, T lse, T delta);
};

}  // namespace dsv4::detail
