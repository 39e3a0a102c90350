// SPDX-License-Identifier: Apache-2.0
/// E5M6, the 12-bit format that saved activations are kept in, and its packing.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cstdint>

namespace dsv4 {

/// Half precision with six mantissa bits, in the low 12 bits of two bytes; max 65024. Rounds to nearest even
/// everywhere. The released kernel rounds subnormal results from bits that it does not realign, so it may
/// differ from this below 2^-14.
using e5m6 = minifloat<5, 6, top_exponent::ieee>;

/// Eight e5m6 in three words, one stream of 96 bits from the top of words[0] down to the bottom of words[2]
/// (the layout of the released kernel).
struct e5m6x8 {
  std::uint32_t words[3] = {};

  /// From eight values.
  DSV4_HOST_DEVICE static constexpr e5m6x8 pack(const e5m6* values) {
    e5m6x8 packed;
    for (int i = 0; i < 8; ++i) packed.set(i, values[i]);
    return packed;
  }
  DSV4_HOST_DEVICE constexpr e5m6 get(int i) const {
    return e5m6::from_bits(static_cast<std::uint16_t>(window(word(i)) >> shift(i) & 0xfffu));
  }
  DSV4_HOST_DEVICE constexpr void set(int i, e5m6 value) {
    const std::uint64_t hole = std::uint64_t{0xfff} << shift(i), bits = std::uint64_t{value.bits} << shift(i);
    const std::uint64_t both = (window(word(i)) & ~hole) | bits;
    words[word(i)] = static_cast<std::uint32_t>(both >> 32);
    if (word(i) < 2) words[word(i) + 1] = static_cast<std::uint32_t>(both);
  }

 private:
  /// The word in which element i begins, and how far above the end of the next one it ends.
  DSV4_HOST_DEVICE static constexpr int word(int i) { return 12 * i / 32; }
  DSV4_HOST_DEVICE static constexpr int shift(int i) { return 64 - 12 - 12 * i % 32; }
  /// Word w above word w + 1.
  DSV4_HOST_DEVICE constexpr std::uint64_t window(int w) const {
    return std::uint64_t{words[w]} << 32 | (w < 2 ? words[w + 1] : 0u);
  }
};

static_assert(sizeof(e5m6) == 2 && e5m6::max() == 65024 && sizeof(e5m6x8) == 12);

}  // namespace dsv4
