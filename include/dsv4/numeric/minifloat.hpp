// SPDX-License-Identifier: Apache-2.0
/// Small floating-point storage types of the Open Compute Project, exact and constexpr.
#pragma once

#include <dsv4/core/macros.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace dsv4 {

/// What the top exponent of a format means.
enum class top_exponent : std::uint8_t {
  finite,  ///< ordinary numbers, no infinity, no NaN (e2m1)
  fn,      ///< ordinary numbers, but all ones is NaN, no infinity (e4m3fn)
  fnuz,    ///< ordinary numbers, no infinity, no -0: its code is the only NaN; bias one higher (e4m3fnuz)
  ieee,    ///< infinity and NaN (e5m2)
};

namespace detail {

/// What the storage types convert from and to.
template <class T>
concept wide_float = std::same_as<T, float> || std::same_as<T, double>;

/// The layout of float and double.
template <wide_float T>
struct wide_layout {
  using word = std::conditional_t<std::same_as<T, float>, std::uint32_t, std::uint64_t>;
  static constexpr int width = 8 * sizeof(T);
  static constexpr int mantissa_bits = std::same_as<T, float> ? 23 : 52;
  static constexpr int bias = std::same_as<T, float> ? 127 : 1023;
  static constexpr word sign = word{1} << (width - 1);
  static constexpr word infinity = (sign - 1) >> mantissa_bits << mantissa_bits;
};

// std::bit_cast is a host function to nvcc; the builtin is not.
template <wide_float T>
DSV4_HOST_DEVICE constexpr auto to_word(T value) {
  return __builtin_bit_cast(typename wide_layout<T>::word, value);
}
DSV4_HOST_DEVICE constexpr float from_word(std::uint32_t word) { return __builtin_bit_cast(float, word); }
DSV4_HOST_DEVICE constexpr double from_word(std::uint64_t word) { return __builtin_bit_cast(double, word); }

/// The magnitude code, in a format of `M` mantissa bits and bias `Bias` without upper end, that is nearest to
/// the value whose bits without sign are `magnitude`; ties to the even code. One rounding, in integers:
/// neither the rounding mode nor flush-to-zero has a say. No branches, and the same steps for normals,
/// subnormals and infinity (which lands beyond all finite codes). NaN is the caller's.
template <wide_float T, int M, int Bias>
DSV4_HOST_DEVICE constexpr int nearest_even_code(typename wide_layout<T>::word magnitude) {
  using L = wide_layout<T>;
  using word = typename L::word;
  constexpr int smallest_normal = L::bias - Bias + 1;  // its exponent field in T
  // T's own subnormals get a leading one below that they do not have; they must be out of reach.
  static_assert(smallest_normal >= M + 2);
  const int exponent = static_cast<int>(magnitude >> L::mantissa_bits);
  const int unit = exponent < smallest_normal ? smallest_normal : exponent;
  const int distance = L::mantissa_bits - M + (unit - exponent);
  const int shift = distance < L::width - 1 ? distance : L::width - 1;
  constexpr word leading = word{1} << L::mantissa_bits;
  const word significand = (magnitude & (leading - 1)) | leading;
  const word rounded = (significand + (word{1} << (shift - 1)) - 1 + (significand >> shift & 1)) >> shift;
  // Codes are linear in the rounded significand: its leading one, and a carry, run into the exponent.
  return static_cast<int>(rounded) + ((unit - smallest_normal) << M);
}

}  // namespace detail

/// Sign, `E` exponent bits, `M` mantissa bits in the low 1 + E + M bits of one or two bytes. The bias is
/// IEEE's 2^(E-1) - 1 (2^(E-1) for fnuz). No implicit conversion in either direction, none at all between
/// formats or from integers (whoever has a code says from_bits). float or double -> type: to the nearest in
/// one rounding, ties to even; overflow and infinity saturate to the largest finite value; NaN stays NaN, or
/// becomes +0 where the format has none. Sources: OCP OFP8 v1.0 (e4m3fn, e5m2), OCP MX v1.0 (e2m1).
template <int E, int M, top_exponent Top>
struct minifloat {
  static_assert(E >= 2 && E <= 5 && M >= 1 && M <= 10);
  /// One byte up to eight bits, else two.
  using storage = std::conditional_t<(1 + E + M <= 8), std::uint8_t, std::uint16_t>;

  static constexpr int exponent_bits = E, mantissa_bits = M;
  static constexpr int bias = (1 << (E - 1)) - (Top == top_exponent::fnuz ? 0 : 1);
  static constexpr storage sign_mask = 1u << (E + M), magnitude_mask = sign_mask - 1;
  /// The code of the largest finite value.
  static constexpr storage max_bits = Top == top_exponent::fn     ? magnitude_mask - 1
                                      : Top == top_exponent::ieee ? (((1u << E) - 1) << M) - 1
                                                                  : magnitude_mask;

  storage bits = 0;

  constexpr minifloat() = default;
  template <detail::wide_float T>
  DSV4_HOST_DEVICE constexpr explicit minifloat(T value) : bits(encode<max_bits>(value)) {}
  DSV4_HOST_DEVICE constexpr explicit operator float() const { return decode(bits); }
  DSV4_HOST_DEVICE constexpr explicit operator double() const { return static_cast<double>(decode(bits)); }

  /// The value with code `b`, of which bits above the format's are dropped.
  DSV4_HOST_DEVICE static constexpr minifloat from_bits(storage b) {
    minifloat m;
    m.bits = b & static_cast<storage>(sign_mask | magnitude_mask);
    return m;
  }
  /// The conversion that OCP OFP8 v1.0 calls non-saturating: what rounds beyond max() becomes infinity, or
  /// NaN where the format has no infinity. Formats with neither always saturate (OCP MX v1.0): not for them.
  template <detail::wide_float T>
  requires(Top != top_exponent::finite) DSV4_HOST_DEVICE static constexpr minifloat non_saturating(T value) {
    // In e4m3fn and e5m2 the code after the largest finite one is what overflow becomes.
    return from_bits(encode<max_bits + 1>(value));
  }
  /// The largest finite value.
  DSV4_HOST_DEVICE static constexpr float max() { return decode(max_bits); }
  DSV4_HOST_DEVICE constexpr bool is_nan() const {
    if constexpr (Top == top_exponent::fnuz) return bits == sign_mask;
    const unsigned magnitude = bits & magnitude_mask;
    return Top == top_exponent::fn     ? magnitude == magnitude_mask
           : Top == top_exponent::ieee ? magnitude > (((1u << E) - 1) << M)
                                       : false;
  }

  /// Compares codes: NaN equals itself, and -0 is not +0.
  DSV4_HOST_DEVICE friend constexpr bool operator==(const minifloat& a, const minifloat& b) {
    return a.bits == b.bits;
  }

 private:
  DSV4_HOST_DEVICE static constexpr float decode(storage b) {
    const std::uint32_t magnitude = b & magnitude_mask;
    const std::uint32_t sign = static_cast<std::uint32_t>(b & sign_mask) << (31 - E - M);
    if (from_bits(b).is_nan()) return detail::from_word(0x7fc00000u);
    // 2^(1 - bias - M), the smallest subnormal: both factors and the product are normal floats or 0.
    constexpr float unit = detail::from_word(static_cast<std::uint32_t>(128 - bias - M) << 23);
    std::uint32_t word = (magnitude << (23 - M)) + (static_cast<std::uint32_t>(127 - bias) << 23);
    if (magnitude < (1u << M)) word = detail::to_word(static_cast<float>(magnitude) * unit);
    if (Top == top_exponent::ieee && magnitude > max_bits) word = 0x7f800000u;
    return detail::from_word(sign | word);
  }
  /// The code of `value`, with `Overflow` in place of all magnitude codes above max_bits.
  template <int Overflow, class T>
  DSV4_HOST_DEVICE static constexpr storage encode(T value) {
    using L = detail::wide_layout<T>;
    const auto word = detail::to_word(value);
    const auto magnitude = word & (L::sign - 1);
    const int sign = static_cast<int>(word >> (L::width - 1)) << (E + M);
    const int code = detail::nearest_even_code<T, M, bias>(magnitude);
    const bool nan = magnitude > L::infinity;
    if constexpr (Top == top_exponent::fnuz) {
      if (nan || (Overflow != max_bits && code > max_bits)) return sign_mask;
      if (code == 0) return 0;
    } else if (nan) {
      return static_cast<storage>(Top == top_exponent::finite ? 0 : sign | magnitude_mask);
    }
    return static_cast<storage>(sign | (code > max_bits ? Overflow : code));
  }
};

using e4m3fn = minifloat<4, 3, top_exponent::fn>;  ///< FP8 for weights, activations and KV entries; max 448
using e4m3 = e4m3fn;                               ///< the dialect of OCP and of the released checkpoints
/// The FP8 dialect of some accelerators: bias 8, max 240, 0x80 is NaN. The same byte is another number than
/// in e4m3fn, so it is another type, and there is no conversion between the two.
using e4m3fnuz = minifloat<4, 3, top_exponent::fnuz>;
using e5m2 = minifloat<5, 2, top_exponent::ieee>;    ///< FP8 with range; max 57344
using e2m1 = minifloat<2, 1, top_exponent::finite>;  ///< FP4, in the low nibble; 0 .5 1 1.5 2 3 4 6

static_assert(e4m3::max() == 448 && e4m3fnuz::max() == 240 && e5m2::max() == 57344 && e2m1::max() == 6);
static_assert(float(e2m1(2.5f)) == 2 && float(e2m1(5.0f)) == 4 && float(e2m1(-7.0f)) == -6);

}  // namespace dsv4
