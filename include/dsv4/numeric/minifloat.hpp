// SPDX-License-Identifier: Apache-2.0
/// Small floating-point storage types of the Open Compute Project, exact and constexpr.
#pragma once

#include <dsv4/core/macros.hpp>

#include <bit>
#include <cstdint>
#include <limits>

namespace dsv4 {

/// What the top exponent of a format means.
enum class top_exponent : std::uint8_t {
  finite,  ///< ordinary numbers, no infinity, no NaN (e2m1)
  fn,      ///< ordinary numbers, but all ones is NaN, no infinity (e4m3fn)
  ieee,    ///< infinity and NaN (e5m2)
};

/// Sign, `E` exponent bits, `M` mantissa bits in the low 1 + E + M bits of a byte; IEEE bias 2^(E-1) - 1.
/// No implicit conversion in either direction. float -> type: nearest, ties to even; overflow and infinity
/// saturate to the largest finite value; NaN stays NaN, or becomes +0 where the format has none.
template <int E, int M, top_exponent Top>
struct minifloat {
  static constexpr int exponent_bits = E, mantissa_bits = M, bias = (1 << (E - 1)) - 1;
  static constexpr std::uint8_t sign_mask = 1u << (E + M), magnitude_mask = sign_mask - 1;
  static constexpr std::uint8_t max_bits = Top == top_exponent::finite ? magnitude_mask
                                           : Top == top_exponent::fn
                                               ? magnitude_mask - 1
                                               : static_cast<std::uint8_t>((((1u << E) - 1) << M) - 1);

  std::uint8_t bits = 0;

  constexpr minifloat() = default;
  DSV4_HOST_DEVICE constexpr explicit minifloat(float value) : bits(encode(value)) {}
  DSV4_HOST_DEVICE constexpr explicit operator float() const { return decode(bits); }
  DSV4_HOST_DEVICE static constexpr minifloat from_bits(std::uint8_t b) {
    minifloat m;
    m.bits = b;
    return m;
  }
  DSV4_HOST_DEVICE static constexpr float max() { return decode(max_bits); }
  DSV4_HOST_DEVICE constexpr bool is_nan() const {
    const unsigned magnitude = bits & magnitude_mask;
    return Top == top_exponent::fn     ? magnitude == magnitude_mask
           : Top == top_exponent::ieee ? magnitude > (((1u << E) - 1) << M)
                                       : false;
  }

 private:
  /// 2^n for the normal range of float.
  DSV4_HOST_DEVICE static constexpr float power_of_two(int n) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(n + 127) << 23);
  }
  DSV4_HOST_DEVICE static constexpr float decode(std::uint8_t b) {
    const int exponent = (b & magnitude_mask) >> M, mantissa = b & ((1 << M) - 1);
    const bool negative = b & sign_mask;
    if (from_bits(b).is_nan()) return std::numeric_limits<float>::quiet_NaN();
    float value;
    if (Top == top_exponent::ieee && exponent == (1 << E) - 1)
      value = std::numeric_limits<float>::infinity();
    else if (exponent == 0)
      value = static_cast<float>(mantissa) * power_of_two(1 - bias - M);
    else
      value = static_cast<float>((1 << M) + mantissa) * power_of_two(exponent - bias - M);
    return negative ? -value : value;
  }
  DSV4_HOST_DEVICE static constexpr std::uint8_t encode(float value) {
    const std::uint32_t word = std::bit_cast<std::uint32_t>(value);
    const std::uint8_t sign = word >> 31 ? sign_mask : std::uint8_t{0};
    const std::uint32_t magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
      return Top == top_exponent::finite ? std::uint8_t{0} : static_cast<std::uint8_t>(sign | magnitude_mask);
    if (magnitude == 0x7f800000u) return sign | max_bits;
    // Significand and exponent of |value| = significand * 2^(exponent - 23).
    int exponent = static_cast<int>(magnitude >> 23) - 127;
    std::uint64_t significand = magnitude & 0x7fffffu;
    if (exponent == -127)
      exponent = -126;
    else
      significand |= 0x800000u;
    // One unit of the result is 2^(unit - M) where unit is the exponent, but never below the subnormals'.
    const int unit = exponent < 1 - bias ? 1 - bias : exponent;
    const int shift = 23 - M + (unit - exponent);
    if (shift > 26) return sign;  // below half of the smallest subnormal
    std::uint64_t rounded = significand >> shift;
    const std::uint64_t rest = significand & ((std::uint64_t{1} << shift) - 1),
                        half = std::uint64_t{1} << (shift - 1);
    if (rest > half || (rest == half && (rounded & 1))) ++rounded;
    // The encoding is linear in the rounded significand: a carry runs into the exponent by itself.
    const std::int64_t code =
        static_cast<std::int64_t>(rounded) + (static_cast<std::int64_t>(unit + bias - 1) << M);
    return code > max_bits ? sign | max_bits : sign | static_cast<std::uint8_t>(code);
  }

  friend constexpr bool operator==(const minifloat& a, const minifloat& b) { return a.bits == b.bits; }
};

using e4m3 = minifloat<4, 3, top_exponent::fn>;      ///< FP8 for weights, activations and KV entries; max 448
using e5m2 = minifloat<5, 2, top_exponent::ieee>;    ///< FP8 with range; max 57344
using e2m1 = minifloat<2, 1, top_exponent::finite>;  ///< FP4, in the low nibble; 0 .5 1 1.5 2 3 4 6

static_assert(e4m3::max() == 448 && e5m2::max() == 57344 && e2m1::max() == 6);
static_assert(float(e2m1(2.5f)) == 2 && float(e2m1(5.0f)) == 4 && float(e2m1(-7.0f)) == -6);

}  // namespace dsv4
