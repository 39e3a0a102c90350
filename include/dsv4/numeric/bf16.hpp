// SPDX-License-Identifier: Apache-2.0
/// bfloat16: the upper half of a float.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cstdint>

namespace dsv4 {

/// Storage of sign, 8 exponent and 7 mantissa bits. No implicit conversion in either direction. float or
/// double -> bf16: to the nearest in one rounding, ties to even, subnormals kept; unlike the small formats it
/// overflows to infinity, as IEEE 754 does; NaN stays NaN, quiet and with its sign.
struct bf16 {
  std::uint16_t bits = 0;

  constexpr bf16() = default;
  /// A double is rounded itself. By way of float, 1 + 2^-8 + 2^-40 would first become the tie 1 + 2^-8.
  template <detail::wide_float T>
  DSV4_HOST_DEVICE constexpr explicit bf16(T value) : bits(encode(value)) {}
  DSV4_HOST_DEVICE constexpr explicit operator float() const {
    return detail::from_word(static_cast<std::uint32_t>(bits) << 16);
  }
  DSV4_HOST_DEVICE constexpr explicit operator double() const {
    return static_cast<double>(static_cast<float>(*this));
  }
  DSV4_HOST_DEVICE static constexpr bf16 from_bits(std::uint16_t b) {
    bf16 x;
    x.bits = b;
    return x;
  }
  /// The largest finite value, 2^128 - 2^120.
  DSV4_HOST_DEVICE static constexpr float max() { return static_cast<float>(from_bits(0x7f7f)); }
  DSV4_HOST_DEVICE constexpr bool is_nan() const { return (bits & 0x7fff) > 0x7f80; }

  /// Compares codes: NaN equals itself, and -0 is not +0.
  DSV4_HOST_DEVICE friend constexpr bool operator==(const bf16& a, const bf16& b) { return a.bits == b.bits; }

 private:
  DSV4_HOST_DEVICE static constexpr std::uint16_t encode(float value) {
    const std::uint32_t word = detail::to_word(value);
    // Truncation keeps sign and payload; the quiet bit keeps a NaN with a low payload from becoming infinity.
    const std::uint32_t nan = word >> 16 | 0x40u, number = (word + 0x7fffu + (word >> 16 & 1u)) >> 16;
    return static_cast<std::uint16_t>((word & 0x7fffffffu) > 0x7f800000u ? nan : number);
  }
  DSV4_HOST_DEVICE static constexpr std::uint16_t encode(double value) {
    using L = detail::wide_layout<double>;
    const std::uint64_t word = detail::to_word(value), magnitude = word & (L::sign - 1);
    const unsigned sign = static_cast<unsigned>(word >> 48 & 0x8000u);
    if (magnitude > L::infinity)
      return static_cast<std::uint16_t>(sign | 0x7fc0u | (magnitude >> (L::mantissa_bits - 7) & 0x3fu));
    const int code = detail::nearest_even_code<double, 7, 127>(magnitude);
    return static_cast<std::uint16_t>(sign | (code > 0x7f80 ? 0x7f80u : static_cast<unsigned>(code)));
  }
};

static_assert(sizeof(bf16) == 2 && float(bf16(1.00390625f)) == 1 && float(bf16(1.01171875f)) == 1.015625f);

}  // namespace dsv4
