// SPDX-License-Identifier: Apache-2.0
/// Tiles of MXFP4 matrices on their way to Hopper's FP8 matrix units.
///
/// MXFP4 becomes E4M3 on its way: what a scale is below the highest of its row goes into the codes'
/// exponents. E4M3 has room for 12 of these; from the first block of channels on that has others, or scales
/// near the ends of float's range, blocks are multiplied in several passes, so that the weights are the exact
/// ones for all scales.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/gemm_tiles_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>

namespace dsv4::detail {

struct gemm_mxfp4_shape {
  static constexpr int channels = 128;  ///< of y, rows of weights: 64 for either of two warpgroups
  static constexpr int stages = 7, threads = 384;
  static constexpr int producer_registers = 72, consumer_registers = 216;
  static constexpr int y_pitch = 64 * 2 + 16;  ///< bytes from row to row of y in shared memory
};

inline constexpr int mxfp4_box_rows = 32;  ///< of x, which are copied at a time

/// 128 channels of a tile's operands.
struct alignas(1024) gemm_mxfp4_stage {
  using shape = gemm_mxfp4_shape;
  std::uint8_t x[gemm_rows_sm90 * gemm_fp8_depth];
  std::uint8_t codes[shape::channels * gemm_fp8_depth / 2];
  float x_scale[gemm_rows_sm90];
  std::uint32_t scales[shape::channels];  ///< bits of four blocks of a row
  std::uint8_t top[shape::channels];      ///< the highest of a row, in a tile's first stage
  /// Passes over the block, a byte for each of the producer's warps; 0 where a plain one does.
  std::uint32_t passes;
  phase_barrier full, empty;
};

struct alignas(1024) gemm_mxfp4_memory {
  using shape = gemm_mxfp4_shape;
  gemm_mxfp4_stage stage[shape::stages];
  std::uint8_t y[2][gemm_rows_sm90 * shape::y_pitch];  ///< each warpgroup's channels of all rows
  std::uint32_t signs;                                 ///< see e2m1_as_e4m3
  int first_tile[most_gemm_groups + 1];
};

/// Copies 128 channels of 128 rows of E2M1 after 128 others, by 128 threads: thread t has 32 of rows t / 4,
/// t / 4 + 32, ... Rows are 64 bytes, as in narrow_tile_offset.
struct e2m1_copies {
  static constexpr int count = gemm_mxfp4_shape::channels / 32;
  const std::uint8_t* from[count];
  __device__ e2m1_copies(const std::uint8_t* first, std::int64_t rows, std::int64_t bytes, int thread) {
#pragma unroll
    for (int i = 0; i < count; ++i)
      from[i] = first + min(std::int64_t{thread / 4 + 32 * i}, rows - 1) * bytes + 16 * (thread % 4);
  }
  /// The `further`-th 128 channels from here.
  __device__ void copy(std::uint32_t to, int further, bool inside) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
      copy_16(to + 32 * 64 * i, from[i] + further * (gemm_fp8_depth / 2), inside);
  }
  __device__ void next(int blocks) {
#pragma unroll
    for (int i = 0; i < count; ++i) from[i] += blocks * (gemm_fp8_depth / 2);
  }
};

/// A row's scales, `Bytes` at a time as the bits of words; where there are none, the row's first again.
template <int Bytes>
struct e8m0_words {
  static constexpr int words = Bytes / 4;
  const std::uint8_t* from;
  int count;
  bool aligned;
  __device__ e8m0_words(const e8m0* row, int count_)
      : from(reinterpret_cast<const std::uint8_t*>(row)),
        count(count_),
        aligned(reinterpret_cast<std::uintptr_t>(row) % Bytes == 0) {}
  __device__ void load(int i, std::uint32_t (&to)[words]) const {
    if (aligned && Bytes * (i + 1) <= count) {
      if constexpr (words == 4)
        asm volatile("ld.global.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "l"(from + Bytes * i));
      else
        asm volatile("ld.global.L2::128B.u32 %0, [%1];" : "=r"(to[0]) : "l"(from + Bytes * i));
    } else {
#pragma unroll
      for (int w = 0; w < words; ++w) to[w] = 0;
#pragma unroll
      for (int j = 0; j < Bytes; ++j)
        to[j / 4] |= static_cast<std::uint32_t>(from[Bytes * i + j < count ? Bytes * i + j : 0])
                     << 8 * (j % 4);
    }
  }
  /// The highest, which is 0xFF if one is NaN.
  __device__ int highest() const {
    std::uint32_t even = 0, odd = 0;
#pragma unroll 4
    for (int i = 0; Bytes * i < count; ++i) {
      std::uint32_t word[words];
      load(i, word);
#pragma unroll
      for (int w = 0; w < words; ++w)
        even = __vmaxu2(even, word[w] & 0x00FF00FFu), odd = __vmaxu2(odd, word[w] >> 8 & 0x00FF00FFu);
    }
    const std::uint32_t both = __vmaxu2(even, odd);
    return static_cast<int>(max(both & 0xFFFFu, both >> 16));
  }
};

/// A place in the ring of stages, and the parity of its barriers' present phase.
struct mxfp4_ring {
  gemm_mxfp4_memory& m;
  int stage = 0, parity = 0;
  __device__ __forceinline__ gemm_mxfp4_stage& operator*() const { return m.stage[stage]; }
  __device__ __forceinline__ gemm_mxfp4_stage* operator->() const { return &m.stage[stage]; }
  __device__ __forceinline__ void advance() {
    const bool wrapped = ++stage == gemm_mxfp4_shape::stages;
    stage = wrapped ? 0 : stage, parity ^= wrapped;
  }
};

/// The highest and lowest of a word's scales that are numbers; 127 where none is.
__device__ __forceinline__ int2 range_of(std::uint32_t scales) {
  int2 found = make_int2(-1, 256);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int s = static_cast<int>(scales >> 8 * j & 0xFF);
    if (s != 0xFF) found = make_int2(max(found.x, s), min(found.y, s));
  }
  return found.x < 0 ? make_int2(127, 127) : found;
}

/// Whether sums of products with such a scale, or with two, stay in float's range.
__device__ __forceinline__ bool ordinary(int scale) { return static_cast<unsigned>(scale - 64) <= 127u; }

/// Whether all of a word's scales are `top` or up to `e2m1_as_e4m3::room` - 1 below, of an ordinary `top`.
__device__ __forceinline__ bool covered(std::uint32_t scales, int top) {
  const std::uint32_t above = scales - static_cast<unsigned>(top - e2m1_as_e4m3::room + 1) * 0x01010101u;
  return ((above | (above + 0x04040404u)) & 0xF0F0F0F0u) == 0;  // each at most 11; what borrows is not
}
/// Whether all four are ordinary.
__device__ __forceinline__ bool ordinary(std::uint32_t scales) {
  const std::uint32_t above = scales - 64 * 0x01010101u;  // each at most 127; what borrows is not
  return (above & 0x80808080u) == 0;
}

/// How many passes each of four blocks of channels needs for the rows of a warp: 0 where the plain one does.
__device__ __forceinline__ void find_passes(bool plain, const std::uint32_t (&scales)[4], std::uint32_t x,
                                            int top, std::uint32_t (&passes)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) passes[i] = 0;
  if (__all_sync(0xFFFFFFFFu, plain)) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int2 range = range_of(scales[i]);
    const bool others =
        !(ordinary(top) && ordinary(static_cast<int>(x >> 8 * i & 0xFF)) && covered(scales[i], top));
    passes[i] = __reduce_max_sync(
        0xFFFFFFFFu, others ? static_cast<unsigned>(range.x - range.y) / e2m1_as_e4m3::room + 1 : 0u);
  }
}

}  // namespace dsv4::detail
