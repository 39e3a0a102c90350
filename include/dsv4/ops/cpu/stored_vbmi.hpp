// SPDX-License-Identifier: Apache-2.0
/// Products of one or two rows of floats with block-scaled weights under AVX-512 with VBMI, which permutes
/// bytes: 64 columns become four vectors of floats, in order, by look-ups. The sums are those of dot_tile;
/// all else is left to stored_avx512.hpp.
#pragma once

#include <dsv4/ops/cpu/row_streams.hpp>
#include <dsv4/ops/cpu/stored_avx512.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx512_vbmi {

#define DSV4_TARGET [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma")]] inline
#define DSV4_LANE \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma"), gnu::always_inline]] static inline

/// The bf16 codes of the magnitudes of E4M3.
inline constexpr auto e4m3_codes = [] {
  std::array<std::uint16_t, 128> codes{};
  for (unsigned i = 0; i < 128; ++i)
    codes[i] = static_cast<std::uint16_t>(__builtin_bit_cast(unsigned, element_values<e4m3>[i]) >> 16);
  return codes;
}();
/// Whether a row has scales with which numbers of E4M3 as bf16, or sums of their products, may be subnormal
/// or too large.
DSV4_TARGET bool unusual(const e8m0* scales, std::int64_t n) {
  __mmask64 out = 0;
  for (std::int64_t i = 0; i < n; i += 64) {
    const __mmask64 there = n - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (n - i)) - 1;
    const __m512i above =
        _mm512_sub_epi8(_mm512_maskz_loadu_epi8(there, scales + i), _mm512_set1_epi8(127 - 48));
    out |= _mm512_mask_cmpgt_epu8_mask(there, above, _mm512_set1_epi8(96));
  }
  return out != 0;
}

/// Where 64 bytes of a vector come from: from(i) for byte i.
consteval std::array<std::uint8_t, 64> bytes_from(auto from) {
  std::array<std::uint8_t, 64> at{};
  for (unsigned i = 0; i < 64; ++i) at[i] = static_cast<std::uint8_t>(from(i));
  return at;
}

/// Looks up the bf16 code of 64 values of E4M3 times one scale: the high and the low bytes of all magnitudes.
struct e4m3_table {
  __m512i high[2], low[2];

  DSV4_LANE void make(e8m0 scale, e4m3_table& to) {
    const __m512i shift = _mm512_set1_epi16(static_cast<short>((scale.bits - 127) * 128));
    __m512i words[4];
    DSV4_UNROLL for (int i = 0; i < 4; ++i) {
      // Zero, the first, and NaN, the last, do not scale.
      const __mmask32 number = i == 0 ? 0xfffffffeu : i == 3 ? 0x7fffffffu : 0xffffffffu;
      const __m512i base = _mm512_loadu_si512(e4m3_codes.data() + 32 * i);
      words[i] = _mm512_mask_add_epi16(base, number, base, shift);
    }
    alignas(64) static constexpr auto even_bytes = bytes_from([](unsigned i) { return 2 * i; });
    const __m512i even = _mm512_loadu_si512(even_bytes.data()),
                  odd = _mm512_add_epi8(even, _mm512_set1_epi8(1));
    DSV4_UNROLL for (int i = 0; i < 2; ++i) {
      to.low[i] = _mm512_permutex2var_epi8(words[2 * i], even, words[2 * i + 1]);
      to.high[i] = _mm512_permutex2var_epi8(words[2 * i], odd, words[2 * i + 1]);
    }
  }
  /// Within 16 columns the first 8 go to to[0], the others to to[1].
  DSV4_LANE void look_up(const e4m3_table& table, __m512i codes, __m512i (&to)[2]) {
    const __m512i low = _mm512_permutex2var_epi8(table.low[0], codes, table.low[1]);
    __m512i high = _mm512_permutex2var_epi8(table.high[0], codes, table.high[1]);
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), 0xf8);  // high | (codes & sign)
    to[0] = _mm512_unpacklo_epi8(low, high);
    to[1] = _mm512_unpackhi_epi8(low, high);
  }
};

/// Scales of the first of rows, and from each row to the next one.
struct strided_scales {
  const e8m0* first = nullptr;
  std::int64_t stride = 0;
};

/// Rows of a stored matrix, at most a chunk of columns: `load` gives 64 columns as floats, of the row that
/// has these scales and whose codes lie at `from`.
template <class W>
struct float_rows;

template <int Rows, scale_rule Rule>
struct float_rows<block_scaled<e4m3, Rows, 128, Rule>> {
  static constexpr std::int64_t chunk = chunk_bytes / std::int64_t{sizeof(float)};
  static constexpr strided_scales scales = {};  ///< they are in the tables
  e4m3_table tables[chunk / 128];

  /// Columns [c, c + n) of the first `count` rows of m. Returns whether they are for this file.
  DSV4_LANE bool open(const auto& m, std::int64_t count, std::int64_t c, std::int64_t n, float_rows& to) {
    const e8m0* const scales = m.row_scales(0) + c / 128;
    const std::int64_t blocks = (n + 127) / 128;
    if (m.row_scales(count - 1) != m.row_scales(0) || unusual(scales, blocks)) return false;
    for (std::int64_t i = 0; i < blocks; ++i) e4m3_table::make(scales[i], to.tables[i]);
    return true;
  }
  DSV4_LANE void load(const std::uint8_t* from, const e8m0*, std::int64_t c, const float_rows& r,
                      __m512 (&to)[4]) {
    // In 128 bits even words are of one vector, odd ones of the next, and the upper half of two more.
    alignas(64) static constexpr auto order =
        bytes_from([](unsigned i) { return 16 * (i % 16 / 8 * 2 + i % 2) + i / 16 * 4 + i % 8 / 2; });
    const __m512i codes = _mm512_maskz_permutexvar_epi8(~__mmask64{0}, _mm512_load_si512(order.data()),
                                                        _mm512_loadu_si512(from));
    __m512i words[2];
    e4m3_table::look_up(r.tables[c / 128], codes, words);
    DSV4_UNROLL for (int i = 0; i < 2; ++i) {
      to[2 * i] = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words[i], 16));
      to[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(words[i], _mm512_set1_epi32(-0x10000)));
    }
  }
};

/// The values of E2M1 times every scale, as they are in floats. Compiled where they are used.
template <class Element>
alignas(64) inline constexpr auto scaled_values = [] {
  std::array<std::array<float, 16>, 256> values{};
  for (unsigned scale = 0; scale < 256; ++scale)
    for (unsigned i = 0; i < 16; ++i) {
      const float value = element_values<Element>[i], size = value < 0 ? -value : value;
      if (scale == 255)
        values[scale][i] = __builtin_nanf("");
      else if ((scale == 254 && size >= 2) || (scale == 253 && size >= 4))
        values[scale][i] = value < 0 ? -__builtin_inff() : __builtin_inff();
      else
        values[scale][i] = value * static_cast<float>(e8m0::from_bits(static_cast<std::uint8_t>(scale)));
    }
  return values;
}();

template <scale_rule Rule>
struct float_rows<block_scaled<e2m1, 1, 32, Rule>> {
  strided_scales scales;

  DSV4_LANE bool open(const auto& m, std::int64_t, std::int64_t c, std::int64_t, float_rows& to) {
    to.scales = {m.row_scales(0) + c / 32, m.scale_row_stride};
    return true;
  }
  DSV4_LANE void load(const std::uint8_t* from, const e8m0* scales, std::int64_t, const float_rows&,
                      __m512 (&to)[4]) {
    // Lanes 2 i and 2 i + 1 get byte i of every eight, and shift one nibble of it each to where the look-up
    // reads its four bits.
    alignas(64) static constexpr auto order = bytes_from([](unsigned i) { return 8 * (i % 4) + i / 8; });
    __m256i codes;
    std::memcpy(&codes, from, sizeof codes);
    const __m512i bytes = _mm512_maskz_permutexvar_epi8(~__mmask64{0}, _mm512_load_si512(order.data()),
                                                        _mm512_castsi256_si512(codes));
    const __m512i shift = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
    DSV4_UNROLL for (int i = 0; i < 4; ++i) {
      to[i] = _mm512_maskz_permutexvar_ps(
          0xffff, _mm512_maskz_srlv_epi32(0xffff, bytes, _mm512_add_epi32(shift, _mm512_set1_epi32(8 * i))),
          _mm512_load_ps(scaled_values<e2m1>[scales[i / 2].bits].data()));
    }
  }
};

/// Columns of a cache line of codes.
template <class W>
inline constexpr std::int64_t line_columns = W::packed ? 128 : 64;

/// Adds the products of a line of columns, from b on, of RX rows of x and of R rows of weights. A line of
/// each is fetched meanwhile.
template <class W, int RX, int R>
DSV4_LANE void add_line(const float* x, std::int64_t ldx, const strided_bytes& codes,
                        const strided_scales& scales, const strided_bytes& ahead, std::int64_t b,
                        const float_rows<W>& opened, __m512 (&acc)[RX][R]) {
  using L = avx512::lanes<float>;
  constexpr int parts = static_cast<int>(line_columns<W>) / 64;
  DSV4_UNROLL for (int h = 0; h < parts; ++h) {  // all rows of a part: shorter chains of sums
    __m512 x_rows[RX][4];
    DSV4_UNROLL for (int i = 0; i < RX; ++i) {
      DSV4_UNROLL for (int v = 0; v < 4; ++v) x_rows[i][v] = L::load(x + i * ldx + b + 64 * h + 16 * v);
    }
    const std::uint8_t *row = codes.first + W::row_bytes(64 * h), *fetched = ahead.first;
    const e8m0* row_scales = scales.first + 2 * h;
    DSV4_UNROLL for (int j = 0; j < R; ++j) {
      if (j % parts == h) __builtin_prefetch(fetched, 0, 3);
      // Keeps the fetches apart, and from holding all rows' addresses in registers.
      asm volatile("" : "+r"(row), "+r"(fetched), "+r"(row_scales));
      __m512 columns[4];
      float_rows<W>::load(row, row_scales, b + 64 * h, opened, columns);
      DSV4_UNROLL for (int v = 0; v < 4; ++v) {
        DSV4_UNROLL for (int i = 0; i < RX; ++i) acc[i][j] = L::fma(x_rows[i][v], columns[v], acc[i][j]);
      }
      row += codes.stride, fetched += ahead.stride, row_scales += scales.stride;
    }
  }
}

/// One chunk of columns, from c on, of RX rows of x times R rows of w: out[RX][R], written or added to. A
/// last chunk that ends within a line is left to the kernels without VBMI.
template <class W, int RX, int R>
DSV4_TARGET void add_chunk(const float* x, std::int64_t ldx, const storage_matrix<const W>& w,
                           const rows_abreast& at, std::int64_t c, std::int64_t depth, float* out) {
  using L = avx512::lanes<float>;
  constexpr std::int64_t line = line_columns<W>;
  const storage_matrix<const W> rows = rows_at<W>(w, at);
  float_rows<W> opened;
  if (depth % line != 0 || !float_rows<W>::open(rows, R, c, depth, opened)) [[unlikely]]
    return avx512::stored_rows_chunk<W, RX, R>(x, ldx, rows, 0, c, out, R);
  __m512 acc[RX][R];
  DSV4_UNROLL for (int i = 0; i < RX; ++i) { DSV4_UNROLL for (int j = 0; j < R; ++j) acc[i][j] = L::zero(); }
  strided_scales scales = opened.scales;
  for (std::int64_t b = 0; b < depth; b += line, scales.first += W::packed ? line / 32 : 0)
    add_line<W, RX, R>(x + c, ldx, {rows.row(0) + W::row_bytes(c + b), rows.row_stride}, scales,
                       fetched_at<W>(w, at, W::row_bytes(c + b)), b, opened, acc);
  DSV4_UNROLL for (int i = 0; i < RX; ++i) {
    const __m512 front[4] = {acc[i][0], acc[i][1], acc[i][2], acc[i][3]};
    const __m512 back[4] = {acc[i][4], acc[i][5], acc[i][6], acc[i][7]};
    L::reduce4(front, back, out + i * R, 4, c > 0);
  }
}

template <class W, int RX>
DSV4_TARGET void few(const float* x, std::int64_t ldx, const storage_matrix<const W>& w, float* y,
                     std::int64_t ldy) {
  constexpr int R = 8;
  constexpr std::int64_t columns = chunk_bytes / std::int64_t{sizeof(float)};
  const std::int64_t k = w.extent[1];
  for (row_streams at = streams_of<W>(w, R); !at.done(); at.advance()) {
    if (at.count < R) return avx512::stored_rest<W>(x, ldx, RX, w, at.first, y, ldy);
    float out[RX][R];
    for (std::int64_t c = 0; c < k; c += columns)
      add_chunk<W, RX, R>(x, ldx, w, at, c, std::min(columns, k - c), out[0]);
    write_sums(at, RX, out[0], R, y, ldy);
  }
}

/// y[n, o] = x[n, k] w[o, k]^T, o at most stored_block_rows.
template <class T, class W>
DSV4_TARGET void stored_nt(const T* x, std::int64_t ldx, std::int64_t n, const storage_matrix<const W>& w,
                           T* scratch, T* y, std::int64_t ldy) {
  if constexpr (std::is_same_v<T, float> && requires { sizeof(float_rows<W>); }) {
    if (n == 1 && w.extent[1] > 0) return few<W, 1>(x, ldx, w, y, ldy);
    if (n == 2 && w.extent[1] > 0) return few<W, 2>(x, ldx, w, y, ldy);
  }
  avx512::stored_nt<T, W>(x, ldx, n, w, scratch, y, ldy);
}

#undef DSV4_LANE
#undef DSV4_TARGET

}  // namespace dsv4::detail::avx512_vbmi
#endif
