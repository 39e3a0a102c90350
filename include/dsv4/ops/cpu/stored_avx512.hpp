// SPDX-License-Identifier: Apache-2.0
/// Decoding of narrow weights in AVX-512 registers: 32 columns at a time, in order.
#pragma once

#include <dsv4/ops/cpu/gemm_avx512.hpp>
#include <dsv4/ops/cpu/stored_portable.hpp>

#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx512 {

#define DSV4_LANE [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma"), gnu::always_inline]] static inline

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
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m512 (&to)[1]) {
    load(j, c, 16, w, to);
  }
  /// The last n columns; zeros behind them.
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m512 (&to)[1]) {
    float lane[16] = {};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(n, 16); ++i)
      lane[i] = stored_value<W>(*w.matrix, w.row + j, w.column + c + i);
    to[0] = lanes<float>::load(lane);
  }
};

template <int R>
struct stored_rows<bf16, R> {
  static constexpr int vectors = 2;
  static constexpr bool in_registers = true;
  const bf16* data;
  std::int64_t stride;
  const bf16* next;  ///< the tile of rows to fetch meanwhile

  DSV4_LANE void open(const matrix_view<const bf16>& m, std::int64_t r, std::int64_t c, std::int64_t,
                      stored_rows& to) {
    to.data = m.data + r * m.stride[0] + c, to.stride = m.stride[0];
    to.next = m.data + (r + R) * m.stride[0] + c * R;
  }
  DSV4_LANE void widen(const bf16* from, __m512 (&to)[2]) {
    DSV4_UNROLL for (int v = 0; v < 2; ++v) {
      __m256i half;
      std::memcpy(&half, from + 16 * v, sizeof half);
      to[v] =
          _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, half), 16));
    }
  }
  DSV4_LANE void prefetch([[maybe_unused]] int j, [[maybe_unused]] std::int64_t c,
                          [[maybe_unused]] const stored_rows& w) {
    if constexpr (R > 1) fetch_ahead<64>(w.next + c * R, j);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m512 (&to)[2]) {
    widen(w.data + j * w.stride + c, to);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m512 (&to)[2]) {
    bf16 last[32] = {};
    std::memcpy(last, w.data + j * w.stride + c, static_cast<std::size_t>(n) * sizeof(bf16));
    widen(last, to);
  }
};

template <int Rows, int Columns, scale_rule Rule, int R>
requires(Columns % 32 == 0) struct stored_rows<block_scaled<e4m3, Rows, Columns, Rule>, R> {
  static constexpr int vectors = 2;
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
  DSV4_LANE __m512 value(__m256i wide) {
    // Sign, exponent and mantissa of E4M3 in their places of binary16, whose value is then that of the code
    // times 2^-8, subnormals included.
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(-0x4080));
    return _mm512_maskz_cvtph_ps(0xffff, half);
  }
  DSV4_LANE void decode(const std::uint8_t* from, float scale, bool huge, __m512 (&to)[2]) {
    __m256i code;
    std::memcpy(&code, from, sizeof code);
    const __m512 factor = _mm512_set1_ps(scale);
    to[0] = value(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(code)));
    to[1] = value(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(code, 1)));
    DSV4_UNROLL for (int v = 0; v < 2; ++v) {
      if (huge) [[unlikely]]
        to[v] = _mm512_mul_ps(to[v], _mm512_set1_ps(256));
      to[v] = _mm512_mul_ps(to[v], factor);
    }
    // The two NaN codes would come out as 480.
    const __m256i all = _mm256_set1_epi8(0x7f);
    const __m256i nan = _mm256_cmpeq_epi8(_mm256_and_si256(code, all), all);
    if (!_mm256_testz_si256(nan, nan)) [[unlikely]] {
      const auto bits = static_cast<unsigned>(_mm256_movemask_epi8(nan));
      const __m512 quiet = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
      to[0] = _mm512_mask_mov_ps(to[0], static_cast<__mmask16>(bits), quiet);
      to[1] = _mm512_mask_mov_ps(to[1], static_cast<__mmask16>(bits >> 16), quiet);
    }
  }
  DSV4_LANE void prefetch([[maybe_unused]] int j, [[maybe_unused]] std::int64_t c,
                          [[maybe_unused]] const stored_rows& w) {
    if constexpr (R > 1) fetch_ahead<32>(w.next + c * R, j);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m512 (&to)[2]) {
    decode(w.codes + j * w.stride + c, w.scales[j][c / Columns], w.huge, to);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m512 (&to)[2]) {
    std::uint8_t last[32] = {};
    std::memcpy(last, w.codes + j * w.stride + c, static_cast<std::size_t>(n));
    decode(last, w.scales[j][c / Columns], w.huge, to);
  }
};

template <scale_rule Rule, int R>
struct stored_rows<block_scaled<e2m1, 1, 32, Rule>, R> {
  static constexpr int vectors = 2;
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
      DSV4_UNROLL for (int v = 0; v < 2; ++v) {
        __m128i bytes;
        std::memcpy(&bytes, from + 16 * v, sizeof bytes);
        const __m512i e = _mm512_maskz_cvtepu8_epi32(0xffff, bytes);
        __m512i word = _mm512_maskz_slli_epi32(0xffff, e, 23);
        word = _mm512_mask_mov_epi32(word, _mm512_testn_epi32_mask(e, e), _mm512_set1_epi32(0x00400000));
        word = _mm512_mask_mov_epi32(word, _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255)),
                                     _mm512_set1_epi32(0x7fc00000));
        _mm512_storeu_ps(to.scales[j] + 16 * v, _mm512_castsi512_ps(word));
      }
    }
  }
  DSV4_LANE void decode(__m128i codes, float scale, __m512 (&to)[2]) {
    const __m512 table =
        _mm512_mul_ps(_mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6),
                      _mm512_set1_ps(scale));
    // Eight nibbles are one 32-bit lane: copied to eight lanes, each shifts its own down. The look-up reads
    // four bits of an index.
    const __m512i four = _mm512_maskz_broadcast_i32x4(0xffff, codes);
    const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i front = _mm512_maskz_permutexvar_epi32(
        0xffff, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), four);
    const __m512i back = _mm512_maskz_permutexvar_epi32(
        0xffff, _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3), four);
    to[0] = _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srlv_epi32(0xffff, front, shift), table);
    to[1] = _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srlv_epi32(0xffff, back, shift), table);
  }
  DSV4_LANE void prefetch([[maybe_unused]] int j, [[maybe_unused]] std::int64_t c,
                          [[maybe_unused]] const stored_rows& w) {
    if constexpr (R > 1) fetch_ahead<16>(w.next + c / 2 * R, j);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const stored_rows& w, __m512 (&to)[2]) {
    __m128i codes;
    std::memcpy(&codes, w.codes + j * w.stride + c / 2, sizeof codes);
    decode(codes, w.scales[j][c / 32], to);
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w, __m512 (&to)[2]) {
    std::uint8_t last[16] = {};
    std::memcpy(last, w.codes + j * w.stride + c / 2, static_cast<std::size_t>((n + 1) / 2));
    if (n % 2) last[n / 2] &= 0xF;
    __m128i codes;
    std::memcpy(&codes, last, sizeof codes);
    decode(codes, w.scales[j][c / 32], to);
  }
};

#define DSV4_TARGET [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma")]] inline
#include <dsv4/ops/cpu/stored_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx512
#endif
