// SPDX-License-Identifier: Apache-2.0
/// Decoding of narrow weights in AVX2 registers: 32 columns at a time, in order.
#pragma once

#include <dsv4/ops/cpu/gemm_avx2.hpp>
#include <dsv4/ops/cpu/stored_avx2_row.hpp>
#include <dsv4/ops/cpu/stored_portable.hpp>

#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx2 {

#define DSV4_LANE [[gnu::target("avx2,fma,f16c"), gnu::always_inline]] static inline

/// R rows of a stored matrix as dot_tile reads them; formats without a decoder below go value by value.
template <class W, int R>
struct stored_rows {
  static constexpr int vectors = 1;
  static constexpr bool in_registers = false;
  const storage_matrix<const W>* matrix;
  std::int64_t row, column;

  /// `to` becomes rows [r, r + R), columns [c, c + n), c a multiple of a chunk, n at most one.
  DSV4_LANE void open(const storage_matrix<const W>& m, std::int64_t r, std::int64_t c, std::int64_t,
                      stored_rows& to) {
    to.matrix = &m, to.row = r, to.column = c;
  }
  DSV4_LANE void prefetch(int, std::int64_t, const stored_rows&) {}
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m256 (&to)[1]) {
    load(j, c, 8, w, to);
  }
  /// The last n columns; zeros behind them.
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m256 (&to)[1]) {
    float lane[8] = {};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(n, 8); ++i)
      lane[i] = stored_value<W>(*w.matrix, w.row + j, w.column + c + i);
    to[0] = lanes<float>::load(lane);
  }
};

template <int R>
struct stored_rows<bf16, R> {
  static constexpr int vectors = 4;
  static constexpr bool in_registers = true;
  const bf16* data;
  std::int64_t stride;
  const bf16* next;  ///< the tile of rows to fetch meanwhile

  DSV4_LANE void open(const matrix_view<const bf16>& m, std::int64_t r, std::int64_t c, std::int64_t,
                      stored_rows& to) {
    to.data = m.data + r * m.stride[0] + c, to.stride = m.stride[0];
    to.next = m.data + (r + R) * m.stride[0] + c * R;
  }
  DSV4_LANE void widen(const bf16* from, __m256 (&to)[4]) {
    DSV4_UNROLL for (int v = 0; v < 4; ++v) {
      __m128i part;
      std::memcpy(&part, from + 8 * v, sizeof part);
      to[v] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(part), 16));
    }
  }
  DSV4_LANE void prefetch([[maybe_unused]] int j, [[maybe_unused]] std::int64_t c,
                          [[maybe_unused]] const stored_rows& w) {
    if constexpr (R > 1) fetch_ahead<64>(w.next + c * R, j);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m256 (&to)[4]) {
    widen(w.data + j * w.stride + c, to);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m256 (&to)[4]) {
    bf16 last[32] = {};
    std::memcpy(last, w.data + j * w.stride + c, static_cast<std::size_t>(n) * sizeof(bf16));
    widen(last, to);
  }
};

template <int Rows, int Columns, scale_rule Rule, int R>
requires(Columns % 32 == 0) struct stored_rows<block_scaled<e4m3, Rows, Columns, Rule>, R> {
  using one_row = row_kernels<block_scaled<e4m3, Rows, Columns, Rule>>;
  static constexpr int vectors = 4;
  static constexpr bool in_registers = true;
  const std::uint8_t *codes, *next;
  std::int64_t stride;
  float scales[R][chunk_bytes / int{sizeof(float)} / 32];
  bool huge;  ///< some scale times 2^8 is no float

  DSV4_LANE void open(const auto& m, std::int64_t r, std::int64_t c, std::int64_t n, stored_rows& to) {
    to.codes = m.row(r) + c, to.next = m.row(r + R) + c * R, to.stride = m.row_stride;
    to.huge = false;
    for (int j = 0; j < R; ++j)
      for (std::int64_t i = 0; i < (n + Columns - 1) / Columns; ++i)
        to.huge |= static_cast<unsigned>(m.row_scales(r + j)[c / Columns + i].bits - 247) < 8u;
    for (int j = 0; j < R; ++j)
      for (std::int64_t i = 0; i < (n + Columns - 1) / Columns; ++i)
        to.scales[j][i] = static_cast<float>(m.row_scales(r + j)[c / Columns + i]) * (to.huge ? 1.f : 256.f);
  }
  DSV4_LANE void decode(const std::uint8_t* from, float scale, bool huge, __m256 (&to)[4]) {
    __m256i code;
    std::memcpy(&code, from, sizeof code);
    const __m256 factor = _mm256_set1_ps(scale);
    // Sign, exponent and mantissa of E4M3 in their places of binary16, whose value is then that of the code
    // times 2^-8, subnormals included.
    const __m256i zero = _mm256_setzero_si256(), places = _mm256_set1_epi16(-0x4080);
    const __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_unpacklo_epi8(zero, code), 1), places),
                  odd = _mm256_and_si256(_mm256_srai_epi16(_mm256_unpackhi_epi8(zero, code), 1), places);
    to[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(even));
    to[1] = _mm256_cvtph_ps(_mm256_castsi256_si128(odd));
    to[2] = _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1));
    to[3] = _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1));
    DSV4_UNROLL for (int v = 0; v < 4; ++v) {
      if (huge) [[unlikely]]
        to[v] = _mm256_mul_ps(to[v], _mm256_set1_ps(256));
      to[v] = _mm256_mul_ps(to[v], factor);
    }
    // The two NaN codes would come out as 480.
    const __m256i all = _mm256_set1_epi8(0x7f);
    const __m256i nan = _mm256_cmpeq_epi8(_mm256_and_si256(code, all), all);
    if (!_mm256_testz_si256(nan, nan)) [[unlikely]] {
      const auto bits = static_cast<unsigned>(_mm256_movemask_epi8(nan));
      const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
      DSV4_UNROLL for (int v = 0; v < 4; ++v) {
        const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits >> 8 * v & 255)), lane);
        to[v] = _mm256_blendv_ps(to[v], quiet, _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, lane)));
      }
    }
  }
  DSV4_LANE void prefetch([[maybe_unused]] int j, [[maybe_unused]] std::int64_t c,
                          [[maybe_unused]] const stored_rows& w) {
    if constexpr (R > 1) fetch_ahead<32>(w.next + c * R, j);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m256 (&to)[4]) {
    decode(w.codes + j * w.stride + c, w.scales[j][c / Columns], w.huge, to);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m256 (&to)[4]) {
    std::uint8_t last[32] = {};
    std::memcpy(last, w.codes + j * w.stride + c, static_cast<std::size_t>(n));
    decode(last, w.scales[j][c / Columns], w.huge, to);
  }
};

template <scale_rule Rule, int R>
struct stored_rows<block_scaled<e2m1, 1, 32, Rule>, R> {
  using one_row = row_kernels<block_scaled<e2m1, 1, 32, Rule>>;
  static constexpr int vectors = 4;
  static constexpr bool in_registers = true;
  static constexpr std::int64_t groups = chunk_bytes / std::int64_t{sizeof(float)} / 32;
  const std::uint8_t *codes, *next;
  std::int64_t stride;
  float scales[R][groups];

  DSV4_LANE void open(const auto& m, std::int64_t r, std::int64_t c, std::int64_t n, stored_rows& to) {
    to.codes = m.row(r) + c / 2, to.next = m.row(r + R) + c / 2 * R, to.stride = m.row_stride;
    for (int j = 0; j < R; ++j) {
      const e8m0* from = m.row_scales(r + j) + c / 32;
      e8m0 last[groups];
      if (n <= 32 * (groups - 1)) {
        if (n > 0) std::memcpy(static_cast<void*>(last), from, static_cast<std::size_t>((n + 31) / 32));
        from = last;
      }
      DSV4_UNROLL for (int v = 0; v < 4; ++v) {
        std::uint64_t bytes;
        std::memcpy(&bytes, from + 8 * v, sizeof bytes);
        const __m256i e = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
        const __m256i low =
            _mm256_and_si256(_mm256_cmpeq_epi32(e, _mm256_setzero_si256()), _mm256_set1_epi32(0x00400000));
        const __m256i nan =
            _mm256_and_si256(_mm256_cmpeq_epi32(e, _mm256_set1_epi32(255)), _mm256_set1_epi32(0x7fc00000));
        const __m256i word = _mm256_or_si256(_mm256_slli_epi32(e, 23), _mm256_or_si256(low, nan));
        _mm256_storeu_ps(to.scales[j] + 8 * v, _mm256_castsi256_ps(word));
      }
    }
  }
  DSV4_LANE void decode(__m128i codes, float scale, __m256 (&to)[4]) {
    // Every code is looked up as the two bytes of its bf16. Each half of a register takes those codes that
    // end up in its half of the four results: in its 16-bit lanes the same byte twice, of which one nibble
    // stays in each.
    const __m256i pairs =
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes),
                            _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3,
                                             6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15));
    const __m256i nibbles =
        _mm256_or_si256(_mm256_and_si256(pairs, _mm256_set1_epi16(0x000f)),
                        _mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi16(0x0f00)));
    const __m256i high = _mm256_shuffle_epi8(
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -0x80, -0x41,
                                                  -0x41, -0x41, -0x40, -0x40, -0x40, -0x40)),
        nibbles);
    const __m256i low = _mm256_shuffle_epi8(
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40, 0, 0, -0x80,
                                                  -0x40, 0, 0x40, -0x80, -0x40)),
        nibbles);
    const __m256i zero = _mm256_setzero_si256(), front = _mm256_unpacklo_epi8(low, high),
                  back = _mm256_unpackhi_epi8(low, high);
    const __m256i values[4] = {_mm256_unpacklo_epi16(zero, front), _mm256_unpackhi_epi16(zero, front),
                               _mm256_unpacklo_epi16(zero, back), _mm256_unpackhi_epi16(zero, back)};
    const __m256 factor = _mm256_set1_ps(scale);
    DSV4_UNROLL for (int v = 0; v < 4; ++v) to[v] = _mm256_mul_ps(_mm256_castsi256_ps(values[v]), factor);
  }
  DSV4_LANE void prefetch([[maybe_unused]] int j, [[maybe_unused]] std::int64_t c,
                          [[maybe_unused]] const stored_rows& w) {
    if constexpr (R > 1) fetch_ahead<16>(w.next + c / 2 * R, j);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m256 (&to)[4]) {
    __m128i codes;
    std::memcpy(&codes, w.codes + j * w.stride + c / 2, sizeof codes);
    decode(codes, w.scales[j][c / 32], to);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m256 (&to)[4]) {
    std::uint8_t last[16] = {};
    std::memcpy(last, w.codes + j * w.stride + c / 2, static_cast<std::size_t>((n + 1) / 2));
    if (n % 2) last[n / 2] &= 0xF;
    __m128i codes;
    std::memcpy(&codes, last, sizeof codes);
    decode(codes, w.scales[j][c / 32], to);
  }
};

#define DSV4_TARGET [[gnu::target("avx2,fma,f16c")]] inline
#include <dsv4/ops/cpu/stored_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx2
#endif
