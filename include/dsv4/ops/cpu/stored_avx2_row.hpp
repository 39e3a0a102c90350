// SPDX-License-Identifier: Apache-2.0
/// One row of x times rows of block-scaled weights in AVX2 registers, with the bits of dot_tile and fewer
/// instructions per weight:
///
/// - Two rows of weights share a register, one per 128-bit lane, so that bytes become floats by unpacking
///   within lanes; x is brought once into the order in which that leaves the columns.
/// - Scales multiply the sums, once per block, instead of the weights: a sum is kept divided by the scale of
///   the current block. That is exact as long as nothing leaves the normal range of floats.
///
/// For the second, magnitudes other than 0 must lie in [2^-50, 2^40) in x, and in [2^-60, 2^40] in scales, at
/// most 2^24 apart within a tile. Then all sums, divided or not, are multiples of 2^-149 and below 2^127.
/// Everything else goes to dot_tile.
#pragma once

#include <dsv4/ops/cpu/gemm_avx2.hpp>
#include <dsv4/ops/cpu/row_streams.hpp>
#include <dsv4/ops/cpu/stored_portable.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx2 {

#define DSV4_LANE [[gnu::target("avx2,fma,f16c"), gnu::always_inline]] static inline

/// Rows i and i + 4 of a tile of eight: the codes of both, one per lane.
DSV4_LANE __m256i load_pair(const std::uint8_t* codes, std::int64_t stride) {
  __m128i low, high;
  std::memcpy(&low, codes, sizeof low);
  std::memcpy(&high, codes + 4 * stride, sizeof high);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/// How an element type is decoded: `columns` of a pair of rows at a time, times 2^exponent. Sums have two
/// registers of four lanes per row; of a step, x has its vectors for them in turn.
template <class Element>
struct row_decoder;

template <>
struct row_decoder<e4m3> {
  static constexpr int columns = 16, exponent = -120, x_exponent = 80;

  /// Eight columns of x: 0 1 2 3 twice, 4 5 6 7 twice.
  DSV4_LANE void order(__m256 x, __m256 (&to)[2]) {
    to[0] = _mm256_permute2f128_ps(x, x, 0x00), to[1] = _mm256_permute2f128_ps(x, x, 0x11);
  }
  /// Sums of columns j and j + 4 (mod 8), for j = 0 1 2 3.
  DSV4_LANE __m256 fold(const __m256 (&sum)[2]) { return _mm256_add_ps(sum[0], sum[1]); }
  /// `top` collects the largest codes: NaN is the largest with either sign.
  DSV4_LANE void multiply_add(__m256i codes, const float* x, __m256 (&sum)[2], __m256i (&top)[2]) {
    top[0] = _mm256_max_epi8(top[0], codes), top[1] = _mm256_max_epu8(top[1], codes);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i bytes[2] = {_mm256_unpacklo_epi8(zero, codes), _mm256_unpackhi_epi8(zero, codes)};
    DSV4_UNROLL for (int i = 0; i < 2; ++i) {
      // Sign, exponent and mantissa of E4M3 in their places of the upper half of a float.
      const __m256i half = _mm256_and_si256(_mm256_srai_epi16(bytes[i], 4), _mm256_set1_epi16(-0x7810));
      sum[0] = _mm256_fmadd_ps(_mm256_load_ps(x + 16 * i),
                               _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, half)), sum[0]);
      sum[1] = _mm256_fmadd_ps(_mm256_load_ps(x + 16 * i + 8),
                               _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, half)), sum[1]);
    }
  }
  DSV4_LANE bool has_nan(const __m256i (&top)[2]) {
    const __m256i found = _mm256_or_si256(_mm256_cmpeq_epi8(top[0], _mm256_set1_epi8(0x7f)),
                                          _mm256_cmpeq_epi8(top[1], _mm256_set1_epi8(-1)));
    return !_mm256_testz_si256(found, found);
  }
};

template <>
struct row_decoder<e2m1> {
  static constexpr int columns = 32, exponent = 0, x_exponent = 0;

  /// Eight columns of x: 0 2 4 6 twice, 1 3 5 7 twice.
  DSV4_LANE void order(__m256 x, __m256 (&to)[2]) {
    to[0] = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    to[1] = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7));
  }
  DSV4_LANE __m256 fold(const __m256 (&sum)[2]) {
    return _mm256_add_ps(_mm256_unpacklo_ps(sum[0], sum[1]), _mm256_unpackhi_ps(sum[0], sum[1]));
  }
  DSV4_LANE void multiply_add(__m256i codes, const float* x, __m256 (&sum)[2], __m256i (&)[2]) {
    // The two upper bytes of the floats of all sixteen codes; the others are zero.
    const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -0x80, -0x41, -0x41, -0x41, -0x40, -0x40, -0x40, -0x40));
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40, 0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40));
    const __m256i zero = _mm256_setzero_si256(), nibble = _mm256_set1_epi8(0xF);
    const __m256i index[2] = {_mm256_and_si256(codes, nibble),
                              _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble)};
    DSV4_UNROLL for (int i = 0; i < 2; ++i) {
      const __m256i above = _mm256_shuffle_epi8(high, index[i]), below = _mm256_shuffle_epi8(low, index[i]);
      const __m256i half[2] = {_mm256_unpacklo_epi8(below, above), _mm256_unpackhi_epi8(below, above)};
      DSV4_UNROLL for (int t = 0; t < 2; ++t) {
        sum[i] = _mm256_fmadd_ps(_mm256_load_ps(x + 32 * t + 8 * i),
                                 _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, half[t])), sum[i]);
        sum[i] = _mm256_fmadd_ps(_mm256_load_ps(x + 32 * t + 16 + 8 * i),
                                 _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, half[t])), sum[i]);
      }
    }
  }
  DSV4_LANE bool has_nan(const __m256i (&)[2]) { return false; }
};

/// What the sums of eight rows are multiplied by: before every block but the first, and at the end.
template <class W>
struct row_scales {
  static constexpr int blocks =
      static_cast<int>(chunk_bytes / std::int64_t{sizeof(float)}) / W::block_columns;
  static_assert(blocks == 8 || blocks == 16 || blocks == 32);
  float factor[8][blocks];
  float last[8];

  /// The scales of rows [r, r + 8), blocks [b, b + n). Returns whether they may be used.
  DSV4_LANE bool open(const auto& m, std::int64_t r, std::int64_t b, std::int64_t n, row_scales& to) {
    using D = row_decoder<typename W::element>;
    __m256i least = _mm256_set1_epi8(-1), most = _mm256_setzero_si256();
    for (int j = 0; j < 8; ++j) {
      const e8m0* from = m.row_scales(r + j) + b;
      std::uint8_t some[blocks], steps[blocks];
      if (n < blocks) {
        std::memset(some, from->bits, blocks);
        std::memcpy(some, from, static_cast<std::size_t>(n));
      }
      const void* const bits = n < blocks ? static_cast<const void*>(some) : from;
      __m256i now, before;  // copies where there are fewer than 32
      if constexpr (blocks == 32) {
        std::memcpy(&now, bits, 32);
        before = _mm256_alignr_epi8(now, _mm256_permute2x128_si256(now, now, 0x08), 15);
      } else {
        if constexpr (blocks == 16) {
          __m128i all;
          std::memcpy(&all, bits, 16), now = _mm256_broadcastsi128_si256(all);
        } else {
          std::int64_t all;
          std::memcpy(&all, bits, 8), now = _mm256_set1_epi64x(all);
        }
        before = _mm256_slli_si256(now, 1);
      }
      least = _mm256_min_epu8(least, now), most = _mm256_max_epu8(most, now);
      const __m256i step = _mm256_add_epi8(_mm256_sub_epi8(before, now), _mm256_set1_epi8(127));
      std::memcpy(steps, &step, blocks);
      DSV4_UNROLL for (int v = 0; v < blocks / 8; ++v) {
        std::int64_t eight;
        std::memcpy(&eight, steps + 8 * v, sizeof eight);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.factor[j] + 8 * v),
                            _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(eight)), 23));
      }
      const unsigned end = from[n - 1].bits - unsigned(D::exponent + D::x_exponent);
      to.last[j] = __builtin_bit_cast(float, (end & 255) << 23);
    }
    // Least bytes: all in one vector, the largest as complements.
    __m128i ends = _mm_min_epu8(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
    __m128i tops = _mm_max_epu8(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    tops = _mm_xor_si128(tops, _mm_set1_epi8(-1));
    ends = _mm_min_epu8(_mm_unpacklo_epi64(ends, tops), _mm_unpackhi_epi64(ends, tops));
    ends = _mm_min_epu8(ends, _mm_srli_epi64(ends, 32));
    ends = _mm_min_epu8(ends, _mm_srli_epi64(ends, 16));
    ends = _mm_min_epu8(ends, _mm_srli_epi64(ends, 8));
    const int low = _mm_extract_epi8(ends, 0), high = 255 - _mm_extract_epi8(ends, 8);
    return low >= 127 - 60 && high <= 127 + 40 && high - low <= 24;
  }
};

/// The kernels for weights `W`.
template <class W>
struct row_kernels {
  using D = row_decoder<typename W::element>;

  /// x as the tiles below read it: twice as many floats, at 32-byte boundaries, up to a multiple of 32
  /// columns. Returns whether all of it may be used.
  [[gnu::target("avx2,fma,f16c")]] static bool order(const float* x, std::int64_t k, float* to) {
    // Subnormal weights stand for those of E4M3.
    constexpr unsigned denormals_are_zeros = 0x40;
    if (_mm_getcsr() & denormals_are_zeros) return false;
    const __m256 least = _mm256_set1_ps(0x1p-50f), most = _mm256_set1_ps(0x1p40f);
    const __m256 factor = _mm256_set1_ps(__builtin_bit_cast(float, (127 + D::x_exponent) << 23));
    __m256 in_range = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (std::int64_t c = 0; c < k / 32 * 32; c += 8) {
      const __m256 v = _mm256_loadu_ps(x + c), size = _mm256_andnot_ps(_mm256_set1_ps(-0.f), v);
      const __m256 fits =
          _mm256_and_ps(_mm256_cmp_ps(size, least, _CMP_GE_OQ), _mm256_cmp_ps(size, most, _CMP_LT_OQ));
      in_range =
          _mm256_and_ps(in_range, _mm256_or_ps(fits, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ)));
      __m256 ordered[2];
      D::order(_mm256_mul_ps(v, factor), ordered);
      _mm256_store_ps(to + 2 * c, ordered[0]);
      _mm256_store_ps(to + 2 * c + 8, ordered[1]);
    }
    return _mm256_movemask_ps(in_range) == 255;
  }

  /// The eight rows of w at which `at` is, at most one chunk of columns, a multiple of 32; x from `order`.
  /// Writes y, or adds to it; returns false, with y as it was, where that is not for this file.
  [[gnu::target("avx2,fma,f16c")]] static bool tile(const float* x, const block_scaled_matrix<const W>& w,
                                                    const rows_abreast& at, std::int64_t c, std::int64_t n,
                                                    float* y, bool add) {
    constexpr std::int64_t block = W::block_columns, step_bytes = W::row_bytes(D::columns);
    static_assert(block % D::columns == 0 && step_bytes == 16);
    const block_scaled_matrix<const W> rows = rows_at<W>(w, at);
    row_scales<W> scales;
    if (!row_scales<W>::open(rows, 0, c / block, (n + block - 1) / block, scales)) return false;
    const std::int64_t stride = rows.row_stride;
    const std::uint8_t* codes = rows.row(0) + W::row_bytes(c);
    strided_bytes ahead = {};
    std::int64_t part = 0;  // of a cache line
    __m256 sum[4][2];
    DSV4_UNROLL for (int i = 0; i < 4; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    __m256i top[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (std::int64_t b = 0; b * block < n; ++b) {
      if (b > 0) DSV4_UNROLL for (int i = 0; i < 4; ++i) {
          const __m256 factor = _mm256_blend_ps(_mm256_broadcast_ss(&scales.factor[i][b]),
                                                _mm256_broadcast_ss(&scales.factor[i + 4][b]), 0xf0);
          sum[i][0] = _mm256_mul_ps(sum[i][0], factor), sum[i][1] = _mm256_mul_ps(sum[i][1], factor);
        }
      for (std::int64_t left = std::min(block, n - b * block); left > 0; left -= D::columns) {
        if (part % 4 == 0) ahead = fetched_at<W>(w, at, codes - rows.row(0));
        const std::uint8_t* const fetched = ahead.first + part % 4 * 2 * ahead.stride;
        DSV4_UNROLL for (int i = 0; i < 4; ++i) {
          if (i % 2 == 0) __builtin_prefetch(fetched + i / 2 * ahead.stride, 0, 3);
          asm volatile("");  // else the fetches move together
          D::multiply_add(load_pair(codes + i * stride, stride), x, sum[i], top);
        }
        codes += step_bytes, x += 2 * D::columns, ++part;
      }
    }
    if (D::has_nan(top)) [[unlikely]]
      return false;
    __m256 folded[4];
    DSV4_UNROLL for (int i = 0; i < 4; ++i) folded[i] = D::fold(sum[i]);
    // As lanes<float>::reduce4, then the scales.
    __m256 total = _mm256_hadd_ps(_mm256_hadd_ps(folded[0], folded[1]), _mm256_hadd_ps(folded[2], folded[3]));
    total = _mm256_mul_ps(total, _mm256_loadu_ps(scales.last));
    _mm256_storeu_ps(y, add ? _mm256_add_ps(_mm256_loadu_ps(y), total) : total);
    return true;
  }
};

#undef DSV4_LANE

}  // namespace dsv4::detail::avx2
#endif
