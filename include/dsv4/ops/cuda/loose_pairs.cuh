// SPDX-License-Identifier: Apache-2.0
/// Weights as the matrix units take them where rows are few: in pieces of 16 bytes, in whatever order is
/// cheap.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/quantise.cuh>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <cstdint>
#include <cuda_fp8.h>

namespace dsv4::detail {

/// How 16 bytes of storage `E` become pairs of bf16 for the matrix units, eight elements at a time. In which
/// order a sum takes its terms is free, so pairs are made of elements that are cheap to bring together:
/// `first(i)` and `second(i)` are the elements of pair i.
template <class E>
struct loose_pairs;

template <>
struct loose_pairs<bf16> {
  static constexpr int count = 8;
  __device__ static constexpr int first(int i) { return 2 * i; }
  __device__ static constexpr int second(int i) { return 2 * i + 1; }
  struct stored_scale {};
  /// Where a row's pieces and their scales lie.
  struct row {
    const uint4* pieces;
    __device__ stored_scale scale_of(int) const { return {}; }
  };
  template <class M>
  __device__ static row row_of(const M& m, std::int64_t r) {
    return {reinterpret_cast<const uint4*>(m.data + r * m.stride[0])};
  }
  /// What decoded bits are multiplied by: zero where they are not `valid`.
  struct scale {
    bool valid;
    __device__ scale(stored_scale, bool valid_) : valid(valid_) {}
    __device__ bool in_two_steps() const { return false; }
  };
  __device__ static void decode(const uint4& bits, int, const scale& s, bool, std::uint32_t (&out)[4]) {
    out[0] = s.valid ? bits.x : 0, out[1] = s.valid ? bits.y : 0;
    out[2] = s.valid ? bits.z : 0, out[3] = s.valid ? bits.w : 0;
  }
};

template <block_format F>
struct loose_pairs<F> {
  static constexpr int count = codes_per_16<F>;
  static_assert(F::block_columns % count == 0, "dsv4: 16 bytes of codes have one scale");
  __device__ static constexpr int first(int i) { return F::packed ? i : i % 2 + i / 2 * 4; }
  __device__ static constexpr int second(int i) { return first(i) + (F::packed ? 4 : 2); }
  using stored_scale = e8m0;
  struct row {
    const uint4* pieces;
    const e8m0* scales;
    __device__ stored_scale scale_of(int piece) const { return scales[piece * count / F::block_columns]; }
  };
  template <class M>
  __device__ static row row_of(const M& m, std::int64_t r) {
    return {reinterpret_cast<const uint4*>(m.row(r)), m.row_scales(r)};
  }
  struct scale : pair_scale {
    __device__ scale(stored_scale s, bool valid) : pair_scale(F::packed ? 126 : 120, s) {
      if (!valid) first = 0;  // decoded bits are finite
    }
  };
  /// Elements 8 part to 8 part + 7.
  __device__ static void decode(const uint4& bits, int part, const scale& s, bool in_two_steps,
                                std::uint32_t (&out)[4]) {
    const std::uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
    if constexpr (F::packed) {
      const std::uint32_t w = word[part];  // code i in bits 4 i to 4 i + 3
      out[0] = (w << 12 & 0x80008000u) | (w << 6 & 0x01C001C0u);
      out[1] = (w << 8 & 0x80008000u) | (w << 2 & 0x01C001C0u);
      out[2] = (w << 4 & 0x80008000u) | (w >> 2 & 0x01C001C0u);
      out[3] = (w & 0x80008000u) | (w >> 6 & 0x01C001C0u);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t w = word[2 * part + half];
        out[2 * half] = (w << 8 & 0x80008000u) | (w << 4 & 0x07F007F0u);
        out[2 * half + 1] = (w & 0x80008000u) | (w >> 4 & 0x07F007F0u);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = multiply_pair(out[i], s.first);
    if (in_two_steps)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = multiply_pair(out[i], s.second);
  }
};

template <class V>
struct view_storage {
  using type = typename V::format;
};
template <class U, int R>
struct view_storage<view<U, R, space::device>> {
  using type = std::remove_const_t<U>;
};

/// Whether weights have two elements in a byte.
template <class V>
inline constexpr bool packed_storage = [] {
  if constexpr (block_format<typename view_storage<V>::type>) return view_storage<V>::type::packed;
  return false;
}();

/// Rows of bf16 that count as if they had been rounded to `F`.
template <class F>
struct rounded_rows : matrix_view<const bf16, space::device> {
  using format = F;
  explicit rounded_rows(const matrix_view<const bf16, space::device>& x)
      : matrix_view<const bf16, space::device>(x) {}
};

/// Elements [16-byte piece `piece`] of row r, as pairs of bf16 in their order.
template <class M, int N>
__device__ __forceinline__ void load_piece(const M& m, std::int64_t r, int piece, std::uint32_t (&out)[N]) {
  if constexpr (requires { m.codes; }) {
    using F = typename M::format;
    const uint4 codes = reinterpret_cast<const uint4*>(m.row(r))[piece];
    decode_16<F>(codes, m.row_scales(r)[piece * codes_per_16<F> / F::block_columns], out);
  } else {
    const uint4 v = reinterpret_cast<const uint4*>(m.data + r * m.stride[0])[piece];
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  }
}

/// A piece of 16 codes of row r, and their scale.
struct fp8_piece {
  uint4 codes;
  e8m0 scale;
};
template <class M>
__device__ __forceinline__ fp8_piece load_codes(const M& m, std::int64_t r, int piece) {
  return {reinterpret_cast<const uint4*>(m.row(r))[piece],
          m.row_scales(r)[piece * 16 / M::format::block_columns]};
}
/// The same of rows that are rounded now, with the codes of quantise_rows_kernel: blocks of 128 elements are
/// those of eight threads side by side, which come here together.
template <class F>
__device__ __forceinline__ fp8_piece load_codes(const rounded_rows<F>& m, std::int64_t r, int piece) {
  static_assert(std::is_same_v<F, fp8_activation>);
  const uint4* const from = reinterpret_cast<const uint4*>(m.data + r * m.stride[0]) + 2 * piece;
  const uint4 half[2] = {from[0], from[1]};
  const std::uint32_t bits[8] = {half[0].x, half[0].y, half[0].z, half[0].w,
                                 half[1].x, half[1].y, half[1].z, half[1].w};
  float value[16], amax = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    value[i] = __uint_as_float(i % 2 ? bits[i / 2] & 0xFFFF0000u : bits[i / 2] << 16);
    amax = larger_magnitude(amax, fabsf(value[i]));
  }
  const unsigned together = 0xFFu << (threadIdx.x % 32 & ~7u);
#pragma unroll
  for (int step = 4; step > 0; step /= 2)
    amax = larger_magnitude(amax, __shfl_xor_sync(together, amax, step));
  const e8m0 scale = device_scale<F>(static_cast<double>(amax));
  const float inverse = 1 / static_cast<float>(scale);  // a power of two: products with it are quotients
  const auto encode = [&](int i) {
    std::uint32_t four = 0;
#pragma unroll
    for (int j = 0; j < 4; j += 2)
      four |= static_cast<std::uint32_t>(__nv_cvt_float2_to_fp8x2(
                  make_float2(value[i + j] * inverse, value[i + j + 1] * inverse), __NV_SATFINITE, __NV_E4M3))
              << 8 * j;
    return four;
  };
  return {make_uint4(encode(0), encode(4), encode(8), encode(12)), scale};
}
template <class F>
__device__ __forceinline__ void load_piece(const rounded_rows<F>& m, std::int64_t r, int piece,
                                           std::uint32_t (&out)[8]) {
  const fp8_piece p = load_codes(m, r, piece);
  decode_16<F>(p.codes, p.scale, out);
}

}  // namespace dsv4::detail
