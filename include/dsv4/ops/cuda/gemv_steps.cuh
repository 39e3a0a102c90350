// SPDX-License-Identifier: Apache-2.0
/// What a warp computes of products with few rows whenever 512 bytes of either of two rows of weights have
/// come. A lane has 16 of them. Lane 4 g + l is row g, and for a second column row g + 8, of the matrix
/// unit's first operand, and its piece of x column g of the second: the diagonal of the product is what each
/// four lanes' pieces sum up to, and nobody needs the rest.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/loose_pairs.cuh>

#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

/// Warps of a block; rows of weights that a warp reads at a time, one for each half of the matrix unit's
/// first operand; and how many such reads are on their way to shared memory.
inline constexpr int gemv_warps = 8, gemv_outputs = 2, gemv_stages = 4;

/// In bf16, with `Rows` rows of x that lie in shared memory as pairs.
template <class W, int Rows>
struct gemv_pairs {
  static constexpr int eighths = W::count / 8;
  uint4* x;  // (Rows, eighths, pieces)
  int pieces;
  float c[Rows][4] = {};

  __device__ gemv_pairs(unsigned char* memory, int pieces_)
      : x(reinterpret_cast<uint4*>(memory)), pieces(pieces_) {}
  template <class M>
  __device__ __forceinline__ void bring(const M& m, std::int64_t row, int rows, int thread) {
    using X = loose_pairs<typename view_storage<M>::type>;
    const int inner = pieces * W::count;
    for (int i = thread; i < Rows * (inner / X::count); i += 32 * gemv_warps) {
      const int r = i / (inner / X::count), at = i % (inner / X::count);
      std::uint32_t out[X::count / 2] = {};
      if (r < rows) load_piece(m, row + r, at, out);
#pragma unroll
      for (int j = 0; j < X::count / 8; ++j) {
        const int eighth = at * (X::count / 8) + j;
        std::uint32_t pair[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const auto half = [](int element) { return element % 2 == 0 ? 0x10u : 0x32u; };
          pair[k] = __byte_perm(out[4 * j + W::first(k) / 2], out[4 * j + W::second(k) / 2],
                                half(W::first(k)) | (half(W::second(k)) + 0x44u) << 8);
        }
        x[(r * eighths + eighth % eighths) * pieces + eighth / eighths] =
            make_uint4(pair[0], pair[1], pair[2], pair[3]);
      }
    }
  }
  __device__ __forceinline__ void step(const uint4 (&weights)[gemv_outputs],
                                       const typename W::stored_scale (&scale)[gemv_outputs], int at) {
    // Beyond the last piece lies what may be NaN.
    const typename W::scale s0(scale[0], at < pieces), s1(scale[1], at < pieces);
    const auto multiply = [&](bool in_two_steps) {
#pragma unroll
      for (int part = 0; part < eighths; ++part) {
        std::uint32_t a0[4], a1[4];
        W::decode(weights[0], part, s0, in_two_steps, a0);
        W::decode(weights[1], part, s1, in_two_steps, a1);
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          const uint4 b = x[(r * eighths + part) * pieces + min(at, pieces - 1)];
          multiply_16x8(c[r], a0[0], a1[0], a0[1], a1[1], b.x, b.y);
          multiply_16x8(c[r], a0[2], a1[2], a0[3], a1[3], b.z, b.w);
        }
      }
    };
    if (__any_sync(0xFFFFFFFFu, s0.in_two_steps() || s1.in_two_steps()))
      multiply(true);
    else
      multiply(false);  // code of its own, without the second steps
  }
  /// Column o of row r, where l == g / 2.
  __device__ __forceinline__ float sum(int r, int o) const {
    return threadIdx.x / 4 % 2 == 0 ? c[r][2 * o] : c[r][2 * o + 1];
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < Rows; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[r][i] = 0;
  }
};

/// In FP8, x as codes and scales: FP8 weights go to the matrix unit as they are stored. What four lanes sum
/// up, 64 channels, leaves it to be scaled and added in float.
template <int Rows>
struct gemv_fp8 {
  static constexpr int count = codes_per_16<fp8_weight>, block = fp8_activation::block_columns;
  uint4* x;  // (Rows, pieces), then scales: (Rows, blocks)
  int pieces;
  float c[Rows][gemv_outputs] = {};

  __device__ gemv_fp8(unsigned char* memory, int pieces_)
      : x(reinterpret_cast<uint4*>(memory)), pieces(pieces_) {}
  template <class M>
  __device__ __forceinline__ void bring(const M& m, std::int64_t row, int rows, int thread) {
    for (int i = thread; i < Rows * pieces; i += 32 * gemv_warps) {
      const int r = i / pieces, at = i % pieces;
      fp8_piece piece{};
      if (r < rows) piece = load_codes(m, row + r, at);
      x[i] = piece.codes;
      if (at % (block / count) == 0) scale_of(r, at) = static_cast<float>(piece.scale);
    }
  }
  __device__ __forceinline__ void step(const uint4 (&weights)[gemv_outputs],
                                       const e8m0 (&scale)[gemv_outputs], int at) {
    const uint4 nothing{};
    const bool valid = at < pieces;  // beyond lies what may be NaN
    const uint4 a = valid ? weights[0] : nothing, b = valid ? weights[1] : nothing;
    at = min(at, pieces - 1);
    const float w[] = {static_cast<float>(scale[0]), static_cast<float>(scale[1])};
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float part[4] = {};
      const uint4 v = x[r * pieces + at];
      multiply_16x8_e4m3(part, a.x, b.x, a.y, b.y, v.x, v.y);
      multiply_16x8_e4m3(part, a.z, b.z, a.w, b.w, v.z, v.w);
      const float s = scale_of(r, at);
#pragma unroll
      for (int o = 0; o < gemv_outputs; ++o) {
        const float own = threadIdx.x / 4 % 2 == 0 ? part[2 * o] : part[2 * o + 1];
        c[r][o] += scaled(own, s, w[o]);
      }
    }
  }
  /// Column o of row r, where l == g / 2.
  __device__ __forceinline__ float sum(int r, int o) const { return c[r][o]; }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < Rows; ++r)
#pragma unroll
      for (int o = 0; o < gemv_outputs; ++o) c[r][o] = 0;
  }

 private:
  __device__ __forceinline__ float& scale_of(int r, int piece) const {
    constexpr int per = block / count;
    return reinterpret_cast<float*>(x + Rows * pieces)[r * ((pieces + per - 1) / per) + piece / per];
  }
};

/// How products of weights W with rows of x are made. FP8 matrix units, which came with sm_89, do not keep
/// what float results would show.
template <class T, class XView, class W, int Rows>
struct gemv_arithmetic_of {
  using type = gemv_pairs<W, Rows>;
};
#if __CUDA_ARCH__ >= 890
template <class XView, int Rows>
requires std::is_same_v<typename view_storage<XView>::type, fp8_activation>
struct gemv_arithmetic_of<bf16, XView, loose_pairs<fp8_weight>, Rows> {
  using type = gemv_fp8<Rows>;
};
#endif
template <class T, class XView, class W, int Rows>
using gemv_arithmetic = typename gemv_arithmetic_of<T, XView, W, Rows>::type;

}  // namespace dsv4::detail
