// SPDX-License-Identifier: Apache-2.0
/// E8M0, the scale of a block: a power of two and nothing else (OCP MX v1.0, section 5.4.1).
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cstdint>

namespace dsv4 {

/// Code x is 2^(x - 127), 0xFF is NaN; there is no zero, no infinity and no sign. It is an exponent and not a
/// number, so it is not made from numbers but by from_bits (a code) or by ceil and floor (a rounding rule).
struct e8m0 {
  std::uint8_t bits = 127;  ///< 2^0

  constexpr e8m0() = default;
  DSV4_HOST_DEVICE static constexpr e8m0 from_bits(std::uint8_t b) {
    e8m0 e;
    e.bits = b;
    return e;
  }

  /// The smallest power of two >= `value`. Above 2^127 saturates to it; below 2^-127, and +-0, to 2^-127.
  /// What no scale can stand for is NaN: infinity, negative numbers, NaN.
  template <detail::wide_float T>
  DSV4_HOST_DEVICE static constexpr e8m0 ceil(T value) {
    return rounded<T, true>(value);
  }
  /// The largest power of two <= `value`; ends and exceptions as for ceil.
  template <detail::wide_float T>
  DSV4_HOST_DEVICE static constexpr e8m0 floor(T value) {
    return rounded<T, false>(value);
  }

  /// Exact for every code. Made from bits, because the value of code 0 is a subnormal float: arithmetic may
  /// flush it to 0, and a bare shift of the code would give 0 for it and infinity for NaN.
  DSV4_HOST_DEVICE constexpr explicit operator float() const {
    std::uint32_t word = static_cast<std::uint32_t>(bits) << 23;
    if (bits == 0) word = 0x00400000u;
    if (bits == 0xFF) word = 0x7fc00000u;
    return detail::from_word(word);
  }
  DSV4_HOST_DEVICE constexpr explicit operator double() const {
    if (bits == 0xFF) return detail::from_word(std::uint64_t{0x7ff8} << 48);
    return detail::from_word(static_cast<std::uint64_t>(bits + 896) << 52);
  }

  /// The n of 2^n, from -127 to 127; of no meaning for NaN.
  DSV4_HOST_DEVICE constexpr int exponent() const { return bits - 127; }
  DSV4_HOST_DEVICE constexpr bool is_nan() const { return bits == 0xFF; }

  /// Compares codes: NaN equals itself.
  DSV4_HOST_DEVICE friend constexpr bool operator==(const e8m0& a, const e8m0& b) { return a.bits == b.bits; }

 private:
  template <class T, bool Up>
  DSV4_HOST_DEVICE static constexpr e8m0 rounded(T value) {
    using L = detail::wide_layout<T>;
    const auto word = detail::to_word(value);
    if ((word & (L::sign - 1)) == 0) return from_bits(0);  // -0 too
    if (word >= L::infinity) return from_bits(0xFF);       // infinity, NaN, and all with a sign
    constexpr auto fraction = (typename L::word{1} << L::mantissa_bits) - 1;
    // 2^-127 is a subnormal of float with its leading one in the fraction's top bit, and has field 0 like all
    // below: rounding down gives it by itself, rounding up leaves field 0 only above it.
    constexpr auto power = L::bias == 127 ? (fraction >> 1) + 1 : 0;
    int code = static_cast<int>(word >> L::mantissa_bits) - L::bias + 127;
    if (Up && ((word & fraction) != 0) && (L::bias != 127 || word > power)) ++code;
    return from_bits(static_cast<std::uint8_t>(code < 0 ? 0 : code > 254 ? 254 : code));
  }
};

static_assert(sizeof(e8m0) == 1 && float(e8m0::from_bits(0)) == 0x1p-127f &&
              float(e8m0::from_bits(254)) == 0x1p127f);

}  // namespace dsv4
