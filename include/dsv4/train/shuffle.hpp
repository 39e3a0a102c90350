// SPDX-License-Identifier: Apache-2.0
/// A shuffled order without memory: any place of it can be asked for by itself.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/core/hash.hpp>

#include <bit>
#include <cstdint>

namespace dsv4 {

/// Where `index` of [0, count) goes in the permutation that `key` names: a Feistel network over the next
/// power of four, repeated until it falls into the range again (fewer than four times on average).
inline std::int64_t shuffled_index(std::int64_t count, std::int64_t index, std::uint64_t key) {
  expect(count > 0, "shuffled_index", "count", "at least 1", count);
  expect(index >= 0 && index < count, "shuffled_index", "index", numbered{"0 to ", count - 1}, index);
  const int half = (std::bit_width(static_cast<std::uint64_t>(count - 1)) + 1) / 2;
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1, base = detail::splitmix64(key);
  auto at = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = at >> half, right = at & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t mixed =
          left ^ (detail::splitmix64(detail::splitmix64(base + round) ^ right) & mask);
      left = right;
      right = mixed;
    }
    at = left << half | right;
  } while (at >= static_cast<std::uint64_t>(count));
  return static_cast<std::int64_t>(at);
}

}  // namespace dsv4
