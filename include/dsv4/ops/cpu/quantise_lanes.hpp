// SPDX-License-Identifier: Apache-2.0
/// Sixteen floats to a small format at a time, exactly as the format's own conversion rounds one. Written
/// once with the compilers' vector types and compiled for several instruction sets.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/block_scaled.hpp>

#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS

namespace dsv4::detail {

/// One row's part of one block: `count` consecutive floats, a multiple of 16.
template <class F>
struct quantise_lanes {
  using ints = std::int32_t __attribute__((vector_size(64)));
  using floats = float __attribute__((vector_size(64)));
  using bytes = std::uint8_t __attribute__((vector_size(16)));
  using pairs = std::uint16_t __attribute__((vector_size(16)));
  using packed = std::uint8_t __attribute__((vector_size(8)));
  using element = typename F::element;
  static constexpr int m = element::mantissa_bits, cut = 23 - m;
  /// Float bits of 2^e.
  static constexpr std::int32_t power(int e) { return (e + 127) << 23; }
  static constexpr std::int32_t least_normal = power(1 - element::bias);
  /// Its last place is the unit of the subnormals: adding it rounds to them.
  static constexpr std::int32_t magic = power(1 - element::bias - m + 23);

  /// The larger of `most` and the magnitudes' float bits; NaN and infinity are above all others.
  [[gnu::always_inline]] static inline void largest(const float* x, std::int64_t count, std::int32_t& most) {
    ints top{};
    for (std::int64_t i = 0; i < count; i += 16) {
      ints w;
      std::memcpy(&w, x + i, sizeof w);
      w &= 0x7fffffff;
      top = w > top ? w : top;
    }
    for (int i = 0; i < 16; ++i) most = top[i] > most ? top[i] : most;
  }

  /// Magnitude, rounded to the nearest, ties to even, and saturated: as a code, or as float bits.
  template <bool Code>
  [[gnu::always_inline]] static inline void round(const float* x, float factor, ints& sign, ints& to) {
    floats v;
    std::memcpy(&v, x, sizeof v);
    v *= factor;
    ints w;
    std::memcpy(&w, &v, sizeof w);
    sign = w & static_cast<std::int32_t>(0x80000000u);
    const ints magnitude = w & 0x7fffffff;
    floats subnormal, shift;
    const ints shifts = magnitude * 0 + magic;
    std::memcpy(&subnormal, &magnitude, sizeof subnormal);
    std::memcpy(&shift, &shifts, sizeof shift);
    subnormal += shift;
    ints low, high = magnitude + ((1 << (cut - 1)) - 1) + ((magnitude >> cut) & 1);
    if constexpr (Code) {
      std::memcpy(&low, &subnormal, sizeof low);
      low -= magic;
      high = (high >> cut) - ((127 - element::bias) << m);
      constexpr std::int32_t most = element::max_bits;
      high = high > most ? high * 0 + most : high;
    } else {
      subnormal -= shift;
      std::memcpy(&low, &subnormal, sizeof low);
      high &= -(1 << cut);
      constexpr std::int32_t most = __builtin_bit_cast(std::int32_t, element::max());
      high = high > most ? high * 0 + most : high;
    }
    to = magnitude < least_normal ? low : high;
  }

  /// Codes of x * factor, from a column on that starts a byte.
  [[gnu::always_inline]] static inline void encode(const float* x, std::int64_t count, float factor,
                                                   std::uint8_t* to) {
    for (std::int64_t i = 0; i < count; i += 16) {
      ints sign, code;
      round<true>(x + i, factor, sign, code);
      code |= (sign >> (31 - element::exponent_bits - m)) & element::sign_mask;
      const bytes narrow = __builtin_convertvector(code, bytes);
      if constexpr (F::packed) {
        pairs two;
        std::memcpy(&two, &narrow, sizeof two);
        const packed one = __builtin_convertvector((two | two >> 4) & 0xff, packed);
        std::memcpy(to + i / 2, &one, sizeof one);
      } else {
        std::memcpy(to + i, &narrow, sizeof narrow);
      }
    }
  }

  /// x becomes what encode would store of it, times `scale`.
  [[gnu::always_inline]] static inline void there_and_back(float* x, std::int64_t count, float factor,
                                                           float scale) {
    for (std::int64_t i = 0; i < count; i += 16) {
      ints sign, value;
      round<false>(x + i, factor, sign, value);
      value |= sign;
      floats v;
      std::memcpy(&v, &value, sizeof v);
      v *= scale;
      std::memcpy(x + i, &v, sizeof v);
    }
  }
};

/// The scale of a block whose largest magnitude has these float bits, finite ones: F::scale by integers
/// alone.
template <class F>
e8m0 scale_of_bits(std::int32_t most) {
  constexpr std::int32_t top = __builtin_bit_cast(std::int32_t, F::element::max());
  if (!(static_cast<double>(__builtin_bit_cast(float, most)) > F::smallest_amax)) return F::scale(0);
  // Both are normal: compare the mantissas, subtract the exponents.
  const bool above = F::rule == scale_rule::ceil && (most & 0x7fffff) > (top & 0x7fffff);
  return e8m0::from_bits(static_cast<std::uint8_t>((most >> 23) - (top >> 23) + 127 + (above ? 1 : 0)));
}

/// Work on a block of `rows` rows by `count` columns, a multiple of 16. Return false, having done nothing,
/// when it has a NaN or an infinity.
#define DSV4_QUANTISE_LANES(SET, TARGET)                                                              \
  namespace SET {                                                                                     \
  template <class F>                                                                                  \
  TARGET bool quantise_block(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t count, \
                             std::uint8_t* to, std::int64_t ldt, e8m0& scale) {                       \
    std::int32_t most = 0;                                                                            \
    for (std::int64_t r = 0; r < rows; ++r) quantise_lanes<F>::largest(x + r * ldx, count, most);     \
    if (most >= 0x7f800000) return false;                                                             \
    scale = scale_of_bits<F>(most);                                                                   \
    const float factor = __builtin_bit_cast(float, (254 - scale.bits) << 23);                         \
    for (std::int64_t r = 0; r < rows; ++r)                                                           \
      quantise_lanes<F>::encode(x + r * ldx, count, factor, to + r * ldt);                            \
    return true;                                                                                      \
  }                                                                                                   \
  template <class F>                                                                                  \
  TARGET bool round_trip_block(float* x, std::int64_t count) {                                        \
    std::int32_t most = 0;                                                                            \
    quantise_lanes<F>::largest(x, count, most);                                                       \
    if (most >= 0x7f800000) return false;                                                             \
    const e8m0 scale = scale_of_bits<F>(most);                                                        \
    const float factor = __builtin_bit_cast(float, (254 - scale.bits) << 23);                         \
    quantise_lanes<F>::there_and_back(x, count, factor, static_cast<float>(scale));                   \
    return true;                                                                                      \
  }                                                                                                   \
  }
DSV4_QUANTISE_LANES(portable, inline)
DSV4_QUANTISE_LANES(avx2, [[gnu::target("avx2,fma,f16c")]] inline)
DSV4_QUANTISE_LANES(avx512, [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma")]] inline)
#undef DSV4_QUANTISE_LANES

}  // namespace dsv4::detail
#endif
