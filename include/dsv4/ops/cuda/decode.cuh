// SPDX-License-Identifier: Apache-2.0
/// Small formats to bf16, eight and more at a time: their bits are a bf16's, but for its exponent's offset.
/// E2M1 to E4M3, four at a time, by tables.
#pragma once

#include <dsv4/numeric/block_scaled.hpp>
#include <dsv4/ops/cuda/common.cuh>

#include <cstdint>

namespace dsv4::detail {

/// Two products of bf16, exact where nothing but exponents change. (Products alone came with sm_90.)
__device__ __forceinline__ std::uint32_t multiply_pair(std::uint32_t a, std::uint32_t b) {
  std::uint32_t c;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(c) : "r"(a), "r"(b), "r"(0x80008000u));
  return c;
}

/// What decoded bits are multiplied by: 2^(offset + scale), in one or two steps, since a bf16 ends at 2^127.
struct pair_scale {
  std::uint32_t first, second;  ///< pairs of bf16

  /// `offset` is 120 or more, so the power is a normal number.
  __device__ pair_scale(int offset, e8m0 scale) {
    const int biased = offset + scale.bits;  // exponents of bf16 end at 254
    first = scale.is_nan() ? 0x7FC07FC0u : pair(min(biased, 254));
    second = pair(max(biased, 254) - 127);
  }
  __device__ bool in_two_steps() const { return second != 0x3F803F80u; }
  __device__ std::uint32_t apply(std::uint32_t bits) const {
    const std::uint32_t value = multiply_pair(bits, first);
    return in_two_steps() ? multiply_pair(value, second) : value;
  }

 private:
  __device__ static std::uint32_t pair(int exponent) {
    return static_cast<std::uint32_t>(exponent) * 0x00800080u;
  }
};

/// The low and the high half of four E4M3 codes, as bf16 2^120 times too small.
__device__ __forceinline__ void spread_e4m3(std::uint32_t codes, std::uint32_t& low, std::uint32_t& high) {
  const std::uint32_t a = __byte_perm(codes, 0, 0x1404), b = __byte_perm(codes, 0, 0x3424);
  low = (a & 0x80008000u) | (a >> 4 & 0x07F007F0u);
  high = (b & 0x80008000u) | (b >> 4 & 0x07F007F0u);
}
/// Eight E2M1 codes, as bf16 2^126 times too small.
__device__ __forceinline__ void spread_e2m1(std::uint32_t codes, std::uint32_t (&out)[4]) {
  const std::uint32_t up = codes << 4;
  // The even column's code is the low nibble of a byte.
  const std::uint32_t r[4] = {__byte_perm(up, codes, 0x4000), __byte_perm(up, codes, 0x5010),
                              __byte_perm(up, codes, 0x6020), __byte_perm(up, codes, 0x7030)};
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = (r[i] & 0x80008000u) | (r[i] >> 6 & 0x01C001C0u);
}

/// 16 bytes of codes of format F to pairs of bf16; how many there are.
template <class F>
inline constexpr int codes_per_16 = F::packed ? 32 : 16;
template <class F>
__device__ __forceinline__ void decode_16(const uint4& codes, e8m0 scale,
                                          std::uint32_t (&out)[codes_per_16<F> / 2]) {
  const std::uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
  const pair_scale s(F::packed ? 126 : 120, scale);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (F::packed) {
      std::uint32_t four[4];
      spread_e2m1(word[i], four);
#pragma unroll
      for (int j = 0; j < 4; ++j) out[4 * i + j] = s.apply(four[j]);
    } else {
      std::uint32_t low, high;
      spread_e4m3(word[i], low, high);
      out[2 * i] = s.apply(low), out[2 * i + 1] = s.apply(high);
    }
  }
}

/// Whether neither zero, subnormal, infinite nor NaN.
__device__ __forceinline__ bool is_normal(float v) {
  return fabsf(v) >= 0x1p-126f && fabsf(v) < infinity<float>;
}
/// value x w. The scales' product may leave float's range where the result does not.
__device__ __forceinline__ float scaled(float value, float x, float w) {
  const float both = x * w;
  return is_normal(both) ? value * both : value * x * w;
}

/// 2^e, e >= -149.
__device__ __forceinline__ float power_of_two(int e) {
  return __uint_as_float(e >= -126 ? static_cast<unsigned>(e + 127) << 23 : 1u << (149 + e));
}

/// The magnitudes 0, 1/2, ..., 6 as E4M3, times 2^(6 + scale - top), four in either word.
struct e2m1_as_e4m3 {
  static constexpr int room = 12;  ///< 0 <= top - scale < room: 6 is 384 at most, a half 2^-6 at least
  std::uint32_t low, high;

  /// For scale 0, as bits that wrap around, of a row whose highest is `top`.
  static __device__ __forceinline__ e2m1_as_e4m3 under(int top) {
    return {0x6C686000u - static_cast<unsigned>(top) * 0x08080800u,
            0x7C787470u - static_cast<unsigned>(top) * 0x08080808u};
  }
  __device__ __forceinline__ e2m1_as_e4m3 at(int scale) const {
    return {low + static_cast<unsigned>(scale) * 0x08080800u,
            high + static_cast<unsigned>(scale) * 0x08080808u};
  }
  /// In a pass over the scales from `top` - `below` down, of which `top` is the highest: zeros where another
  /// pass has them, NaN in the first.
  static __device__ __forceinline__ e2m1_as_e4m3 in_pass(int scale, int top, int below) {
    const unsigned distance = static_cast<unsigned>(top - below - scale);
    e2m1_as_e4m3 table = under(top - below).at(scale);
    if (distance >= unsigned{room}) table.low = table.high = 0;
    if (scale == 0xFF) table.low = table.high = below == 0 ? 0x7F7F7F7Fu : 0u;
    return table;
  }
  /// Four codes, with the other sign. `signs` is 0x40404040, twice 0x40 being 0x80 where the sign bit, which
  /// makes prmt repeat the chosen byte's highest bit instead, is not set.
  __device__ __forceinline__ std::uint32_t operator()(std::uint32_t four, std::uint32_t signs) const {
    return choose(low, high, four & 0x7777u) + 2 * choose(signs, signs, four);
  }

 private:
  static __device__ __forceinline__ std::uint32_t choose(std::uint32_t a, std::uint32_t b,
                                                         std::uint32_t selector) {
    std::uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
    return r;
  }
};

}  // namespace dsv4::detail
