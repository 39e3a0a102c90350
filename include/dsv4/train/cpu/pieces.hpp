// SPDX-License-Identifier: Apache-2.0
/// Element-wise work on host threads, in pieces whose bounds do not depend on the number of threads: the same
/// elements are in the tail of a vectorised loop in every run.
#pragma once

#include <dsv4/exec/cpu.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4::detail {

/// Calls body(b, begin, end) for pieces of `count` arrays of `size` elements, spread over the threads.
template <class Body>
void for_each_piece(const exec::cpu& p, std::int64_t count, std::int64_t size, const Body& body) {
  constexpr std::int64_t piece = 16384;
  const std::int64_t pieces = (size + piece - 1) / piece;
  p.parallel_for(count * pieces, 1 + piece / std::max<std::int64_t>(size, 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i)
                     body(i / pieces, i % pieces * piece, std::min(size, (i % pieces + 1) * piece));
                 });
}

}  // namespace dsv4::detail
