// SPDX-License-Identifier: Apache-2.0
/// Two FP4 values in a byte.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cstdint>

namespace dsv4 {

/// Elements 2i (low nibble) and 2i + 1 (high nibble) of a row: the order of the released checkpoints. Other
/// formats split a block into its halves instead, so the order is this type's, not the reader's.
struct e2m1x2 {
  std::uint8_t bits = 0;

  constexpr e2m1x2() = default;
  DSV4_HOST_DEVICE constexpr e2m1x2(e2m1 even, e2m1 odd)
      : bits(static_cast<std::uint8_t>(even.bits | odd.bits << 4)) {}
  DSV4_HOST_DEVICE static constexpr e2m1x2 from_bits(std::uint8_t b) {
    e2m1x2 pair;
    pair.bits = b;
    return pair;
  }
  DSV4_HOST_DEVICE constexpr e2m1 even() const { return e2m1::from_bits(bits & 0xF); }
  DSV4_HOST_DEVICE constexpr e2m1 odd() const {
    return e2m1::from_bits(static_cast<std::uint8_t>(bits >> 4));
  }

  DSV4_HOST_DEVICE friend constexpr bool operator==(const e2m1x2& a, const e2m1x2& b) {
    return a.bits == b.bits;
  }
};

static_assert(sizeof(e2m1x2) == 1);

}  // namespace dsv4
