// SPDX-License-Identifier: Apache-2.0
/// What the matrix micro-kernels of all instruction sets share.
#pragma once

#include <dsv4/core/macros.hpp>

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

}  // namespace dsv4::detail
