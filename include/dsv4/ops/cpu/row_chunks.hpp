// SPDX-License-Identifier: Apache-2.0
/// Sums over rows, for parameter gradients: fixed chunks of rows, added in index order, so that the bits do
/// not depend on the number of threads.
#pragma once

#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/workspace.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4::detail {

/// Rows of a chunk. Chunks are a matter of the number of rows only.
inline constexpr std::int64_t chunk_rows = 32;

/// sum[0, width) += body's contributions: body(begin, end, partial) adds those of the rows [begin, end) to
/// its own zeroed `partial`. With sum == nullptr the body still runs, partial being nullptr. `rows_each`
/// rows make a chunk.
template <class T, class Body>
void sum_over_rows(const exec::cpu& p, workspace& w, std::int64_t rows, std::int64_t width, T* sum,
                   const Body& body, std::int64_t rows_each = chunk_rows) {
  const std::int64_t chunks = (rows + rows_each - 1) / rows_each;
  if (chunks == 0) return;
  workspace::scope scope(w);
  T* const partials = sum ? w.take<T>(chunks, width).data : nullptr;
  p.parallel_for(chunks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      T* const partial = sum ? partials + i * width : nullptr;
      if (sum) std::fill_n(partial, width, T(0));
      body(i * rows_each, std::min(rows, (i + 1) * rows_each), partial);
    }
  });
  if (!sum) return;
  p.parallel_for(width, 1 + 16384 / chunks, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 1; i < chunks; ++i)
      for (std::int64_t c = begin; c < end; ++c) partials[c] += partials[i * width + c];
    for (std::int64_t c = begin; c < end; ++c) sum[c] += partials[c];
  });
}

}  // namespace dsv4::detail
