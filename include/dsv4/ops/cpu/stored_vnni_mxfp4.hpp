// SPDX-License-Identifier: Apache-2.0
/// Products of MXFP4 weights with one or two rows of FP8 inputs, by integer dot products, with the bits of
/// stored_amx.hpp. There a tile's instruction adds up a block of 32 columns before it adds that sum to y. The
/// block's numbers are integers times a power of two; where their sum, in whatever order, is exact in floats,
/// the instruction is y = fma(sum, scale, y), and any way of finding the sum will do.
///
/// A block's sum may need more than the 24 bits of a float only where inputs differ by much. Then they are
/// split by size into two blocks that do not, of which the larger numbers come first: see split.
///
/// Here twice an E2M1 value, plus 12, is an unsigned byte, and 2^9 times an E4M3 value three digits to base
/// 128. Every lane has a block of one row of weights: four rows are interleaved before they are decoded.
#pragma once

#include <dsv4/ops/cpu/stored_bf16.hpp>
#include <dsv4/ops/cpu/stored_vbmi.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::vnni_mxfp4 {

#define DSV4_TARGET                                                                    \
  [[gnu::target(                                                                       \
      "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx512vnni,gfni,avx2," \
      "fma")]] inline
#define DSV4_LANE                                                                                     \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx512vnni,gfni,avx2,fma"), \
    gnu::always_inline]] static inline

/// Rows of inputs that a product takes, at most; rows of weights of a tile; columns of a piece, a line of
/// codes, and of a block.
inline constexpr std::int64_t most_rows = 2, tile = 16, piece = 128, block = 32;
constexpr std::int64_t pieces(std::int64_t k) { return (k + piece - 1) / piece; }
constexpr std::int64_t blocks(std::int64_t k) { return (k + block - 1) / block; }

/// Splits the codes of a row: of blocks that need it `rest` gets the numbers below 2 and `large` the others,
/// of all else `large` has everything. Returns whether any does, and marks it in `needed`.
DSV4_TARGET bool split(const std::uint8_t* codes, std::int64_t k, std::uint8_t* large, std::uint8_t* rest,
                       bool* needed) {
  bool any = false;
  for (std::int64_t c = 0; c < k; c += block) {
    const std::int64_t n = std::min(block, k - c);
    const __mmask32 there = n == block ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
    const __m256i own = _mm256_maskz_loadu_epi8(there, codes + c);
    // Magnitudes are integers times 2^-9, multiples of their last place. Products with E2M1 are integers of
    // up to 12 times that, and a sum of theirs is exact when it is less than 2^24 of the least last place. It
    // always is from 2^3 on: 12 * 32 * 448 * 2^9 < 2^(24 + 3).
    const __m256i size = _mm256_and_si256(own, _mm256_set1_epi8(0x7f));
    const __mmask32 fine =
        _mm256_mask_cmplt_epu8_mask(_mm256_test_epi8_mask(size, size), size, _mm256_set1_epi8(0x20));
    int sum = 0, least = 3;
    if (fine != 0) {
      alignas(32) std::uint8_t sizes[block];
      _mm256_store_si256(reinterpret_cast<__m256i*>(sizes), size);
      for (const int value : sizes) {
        const int place = std::max(value / 8 - 1, 0);
        sum += (value < 8 ? value : 8 + value % 8) << place;
        if (value != 0) least = std::min(least, place);
      }
    }
    const bool apart = std::int64_t{12} * sum >= std::int64_t{1} << (24 + least);
    const __mmask32 moved = apart ? _mm256_testn_epi8_mask(own, _mm256_set1_epi8(0x40)) : 0;
    _mm256_mask_storeu_epi8(large + c, there, _mm256_maskz_mov_epi8(~moved, own));
    _mm256_mask_storeu_epi8(rest + c, there, _mm256_maskz_mov_epi8(moved, own));
    *needed++ = apart;
    any = any || apart;
  }
  return any;
}

/// A piece of a row of inputs: for digit d, four columns j of a block, odd or even ones, the bytes of the
/// four blocks, four times each; what the sums are too large by; and the scale's exponent, in four bytes.
struct alignas(64) packed_piece {
  std::int8_t digits[3][4][2][64];
  std::int32_t excess[16];
  std::uint32_t scale;
};

/// Digits of the magnitudes of 2^9 E4M3, lowest first, in -64 ... 63. NaN is left to the float kernels.
alignas(64) inline constexpr auto digits = [] {
  std::array<std::array<std::int8_t, 128>, 3> d{};
  for (unsigned code = 0; code < 127; ++code) {
    int v = static_cast<int>(element_values<e4m3>[code] * 512);
    for (auto& digit : d) {
      const int low = (v + 64) % 128 - 64;
      digit[code] = static_cast<std::int8_t>(low);
      v = (v - low) / 128;
    }
  }
  return d;
}();

/// Packs a row of codes. Returns whether there is a NaN among them.
DSV4_TARGET bool pack(const std::uint8_t* codes, const e8m0* scales, std::int64_t k, packed_piece* to) {
  alignas(64) static constexpr auto even = avx512_vbmi::bytes_from([](unsigned i) { return 2 * i; });
  __mmask64 nan = 0;
  for (std::int64_t c = 0; c < k; c += piece, ++to) {
    // Twice E2M1 and 2^9 times E4M3: 2^-10.
    to->scale = 0x01010101u * static_cast<std::uint8_t>(scales[c / piece].bits - 127 - 10);
    __m512i all[2];
    DSV4_UNROLL for (int i = 0; i < 2; ++i) {
      const std::int64_t n = k - c - 64 * i;
      const __mmask64 there = n >= 64 ? ~__mmask64{0} : n <= 0 ? 0 : (__mmask64{1} << n) - 1;
      all[i] = _mm512_maskz_loadu_epi8(there, codes + c + 64 * i);
      const __m512i magnitude = _mm512_set1_epi8(0x7f);
      nan |= _mm512_cmpeq_epi8_mask(_mm512_and_si512(all[i], magnitude), magnitude);
    }
    __m512i sums[3] = {};
    DSV4_UNROLL for (int odd = 0; odd < 2; ++odd) {
      const __m512i from = _mm512_add_epi8(_mm512_load_si512(even.data()), _mm512_set1_epi8(odd ? 1 : 0));
      const __m512i own = _mm512_permutex2var_epi8(all[0], from, all[1]);
      DSV4_UNROLL for (unsigned d = 0; d < 3; ++d) {
        const __m512i size = _mm512_permutex2var_epi8(_mm512_load_si512(digits[d].data()), own,
                                                      _mm512_load_si512(digits[d].data() + 64));
        const __m512i digit =
            _mm512_mask_sub_epi8(size, _mm512_movepi8_mask(own), _mm512_setzero_si512(), size);
        sums[d] = _mm512_dpbusd_epi32(sums[d], _mm512_set1_epi8(12), digit);
        DSV4_UNROLL for (int j = 0; j < 4; ++j) {
          const __m512i of = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
          _mm512_store_si512(
              to->digits[d][j][odd],
              _mm512_maskz_permutexvar_epi32(0xffff, _mm512_add_epi32(of, _mm512_set1_epi32(j)), digit));
        }
      }
    }
    alignas(64) std::int32_t parts[3][16];
    for (unsigned d = 0; d < 3; ++d) _mm512_store_si512(parts[d], sums[d]);
    for (int b = 0; b < 4; ++b) {
      std::int32_t excess = 0;
      for (int j = 4 * b; j < 4 * b + 4; ++j) excess -= parts[0][j] + parts[1][j] * 128 + parts[2][j] * 16384;
      std::fill_n(to->excess + 4 * b, 4, excess);
    }
  }
  return nan != 0;
}

/// Some rows of inputs, packed: of each the pieces of all columns, then those of what is split off, where
/// `more` tells that a piece has some.
struct packed_rows {
  const packed_piece* data;
  const bool* more;
};

/// Sums of four blocks of four rows of weights, and pieces of x that lie `apart` from each other: row r of
/// weights and block b in element 4 b + r. From `ahead` on
/// a line is fetched for every row meanwhile: that the fetches pass a register keeps
/// the compiler from moving them together, as memory keeps up with them at an even pace only.
template <int n>
DSV4_LANE void multiply_four(const std::uint8_t* codes, std::int64_t stride, const std::uint8_t* ahead,
                             std::int64_t ahead_stride, const packed_piece* x, std::int64_t apart,
                             __m512i (&to)[n]) {
  // Twice E2M1, plus 12.
  const __m512i values = _mm512_set4_epi32(0x00040608, 0x090a0b0c, 0x18141210, 0x0f0e0d0c);
  const __m512i first = _mm512_loadu_si512(codes), second = _mm512_loadu_si512(codes + stride),
                third = _mm512_loadu_si512(codes + 2 * stride),
                fourth = _mm512_loadu_si512(codes + 3 * stride);
  const __m512i pairs[4] = {
      _mm512_maskz_unpacklo_epi32(0xffff, first, second), _mm512_maskz_unpackhi_epi32(0xffff, first, second),
      _mm512_maskz_unpacklo_epi32(0xffff, third, fourth), _mm512_maskz_unpackhi_epi32(0xffff, third, fourth)};
  __m512i sums[n][3];
  DSV4_UNROLL for (int i = 0; i < n; ++i) {
    sums[i][0] = _mm512_load_si512(x[i * apart].excess);
    sums[i][1] = sums[i][2] = _mm512_setzero_si512();
  }
  DSV4_UNROLL for (int j = 0; j < 4; ++j) {  // the same four columns of every block of a row side by side
    const __m512i v = j % 2 ? _mm512_maskz_unpackhi_epi64(0xff, pairs[j / 2], pairs[2 + j / 2])
                            : _mm512_maskz_unpacklo_epi64(0xff, pairs[j / 2], pairs[2 + j / 2]);
    const __m512i low = _mm512_shuffle_epi8(values, _mm512_and_si512(v, _mm512_set1_epi8(15)));
    __m512i high = _mm512_shuffle_epi8(
        values, _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(0x1020408000000000), 0));
    asm volatile("prefetcht0 %1" : "+v"(high) : "m"(ahead[j * ahead_stride]) : "memory");
    DSV4_UNROLL for (int i = 0; i < n; ++i) {
      DSV4_UNROLL for (int d = 0; d < 3; ++d) {
        const auto& digits = x[i * apart].digits[d][j];
        sums[i][d] = _mm512_dpbusd_epi32(sums[i][d], low, _mm512_load_si512(digits[0]));
        sums[i][d] = _mm512_dpbusd_epi32(sums[i][d], high, _mm512_load_si512(digits[1]));
      }
    }
  }
  DSV4_UNROLL for (int i = 0; i < n; ++i) {
    const __m512i upper = _mm512_add_epi32(sums[i][1], _mm512_maskz_slli_epi32(0xffff, sums[i][2], 7));
    to[i] = _mm512_add_epi32(sums[i][0], _mm512_maskz_slli_epi32(0xffff, upper, 7));
  }
}

/// Bytes [4 p, 4 p + 4) of the scales of rows [r, r + n), in a word for each; the scale 1 where there are
/// none.
template <class W>
DSV4_LANE __m512i scale_words(const storage_matrix<const W>& w, std::int64_t r, std::int64_t n,
                              std::int64_t p) {
  const std::int64_t left = W::scale_columns(w.extent[1]) - 4 * p;
  const e8m0* const scales = w.row_scales(r) + 4 * p;
  if (n == tile && left >= 4) [[likely]] {
    const __m512i rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto stride = _mm512_set1_epi32(static_cast<int>(w.scale_row_stride));
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, _mm512_mullo_epi32(rows, stride),
                                       scales, 1);
  }
  alignas(64) std::uint8_t words[64];
  std::memset(words, 127, sizeof words);
  for (std::int64_t i = 0; i < n; ++i)
    std::memcpy(words + 4 * i, scales + i * w.scale_row_stride,
                static_cast<std::size_t>(std::min<std::int64_t>(left, 4)));
  return _mm512_load_si512(words);
}

/// Four blocks' sums of sixteen rows, as floats: `four` has four rows in each element, by block.
DSV4_LANE void by_block(const __m512i (&four)[4], __m512 (&to)[4]) {
  const __m512i halves[4] = {_mm512_maskz_shuffle_i32x4(0xffff, four[0], four[1], 0x44),
                             _mm512_maskz_shuffle_i32x4(0xffff, four[2], four[3], 0x44),
                             _mm512_maskz_shuffle_i32x4(0xffff, four[0], four[1], 0xee),
                             _mm512_maskz_shuffle_i32x4(0xffff, four[2], four[3], 0xee)};
  DSV4_UNROLL for (int b = 0; b < 4; ++b) {
    const __m512i front = halves[b / 2 * 2], back = halves[b / 2 * 2 + 1];
    to[b] = _mm512_maskz_cvtepi32_ps(0xffff, b % 2 ? _mm512_maskz_shuffle_i32x4(0xffff, front, back, 0xdd)
                                                   : _mm512_maskz_shuffle_i32x4(0xffff, front, back, 0x88));
  }
}

/// Adds the products of a piece of `n` rows of x and sixteen rows of weights to y. Each row has its pieces,
/// and with parts = 2 what is split off in as many behind them, all `apart` from each other.
template <int n, int parts>
DSV4_LANE void add_piece(const std::uint8_t* codes, std::int64_t stride, __m512i scales,
                         const std::uint8_t* ahead, std::int64_t ahead_stride, const packed_piece* x,
                         std::int64_t apart, float (*y)[tile]) {
  __m512i four[n * parts][4] = {};
  DSV4_UNROLL for (int a = 0; a < 4; ++a) {
    __m512i sums[n * parts];
    multiply_four<n * parts>(codes + 4 * a * stride, stride, ahead + 4 * a * ahead_stride, ahead_stride, x,
                             apart * 2 / parts, sums);
    DSV4_UNROLL for (int i = 0; i < n * parts; ++i) four[i][a] = sums[i];
  }
  DSV4_UNROLL for (int i = 0; i < n; ++i) {
    const __m512i words =
        _mm512_add_epi8(scales, _mm512_set1_epi32(static_cast<int>(x[2 * i * apart].scale)));
    const __m512i exponents[4] = {
        _mm512_maskz_slli_epi32(0xffff, words, 23), _mm512_maskz_slli_epi32(0xffff, words, 15),
        _mm512_maskz_slli_epi32(0xffff, words, 7), _mm512_maskz_srli_epi32(0xffff, words, 1)};
    __m512 sums[parts][4], sum = _mm512_load_ps(y[i]);
    DSV4_UNROLL for (int part = 0; part < parts; ++part) by_block(four[parts * i + part], sums[part]);
    DSV4_UNROLL for (int b = 0; b < 4; ++b) {
      const __m512 scale = _mm512_castsi512_ps(_mm512_and_si512(exponents[b], _mm512_set1_epi32(0x7f800000)));
      DSV4_UNROLL for (int part = 0; part < parts; ++part) sum = _mm512_fmadd_ps(sums[part][b], scale, sum);
    }
    _mm512_store_ps(y[i], sum);
  }
}
/// With what is split off. Out of line, as it is rare.
template <int n>
[[gnu::noinline]] DSV4_TARGET void add_split_piece(const std::uint8_t* codes, std::int64_t stride,
                                                   const __m512i* scales, const std::uint8_t* ahead,
                                                   std::int64_t ahead_stride, const packed_piece* x,
                                                   std::int64_t apart, float (*y)[tile]) {
  add_piece<n, 2>(codes, stride, *scales, ahead, ahead_stride, x, apart, y);
}

/// Adds the products of rows of x and of the rows of w at which `at` is to y.
template <int n, class W>
DSV4_LANE void multiply_tile(const packed_rows& x, const storage_matrix<const W>& w, const row_streams& at,
                             float (*y)[tile]) {
  const storage_matrix<const W> rows = rows_at<W>(w, at);
  const std::int64_t all = pieces(w.extent[1]), row_bytes = W::row_bytes(w.extent[1]);
  alignas(64) std::uint8_t part[tile][64];
  for (std::int64_t p = 0; p < all; ++p) {
    const std::int64_t left = row_bytes - p * 64;
    const std::uint8_t* codes = rows.row(0) + p * 64;
    const auto [ahead, ahead_stride] = fetched_at<W>(w, at, p * 64);
    fetch_ahead<64>(w.row_scales(at.behind()) + p * 64, 0);
    std::int64_t stride = rows.row_stride;
    if (at.count < tile || left < 64) [[unlikely]] {
      std::memset(part, 0, sizeof part);
      for (std::int64_t a = 0; a < at.count; ++a)
        std::memcpy(part[a], codes + a * stride, static_cast<std::size_t>(std::min<std::int64_t>(64, left)));
      codes = part[0], stride = 64;
    }
    const __m512i scales = scale_words<W>(rows, 0, at.count, p);
    bool more = x.more[p];
    for (int a = 1; a < n; ++a) more = more || x.more[a * all + p];
    if (more) [[unlikely]]
      add_split_piece<n>(codes, stride, &scales, ahead, ahead_stride, x.data + p, all, y);
    else
      add_piece<n, 1>(codes, stride, scales, ahead, ahead_stride, x.data + p, all, y);
  }
}

/// y[n, o] = x[n, k] w[o, k]^T for n packed rows of inputs, and k > 0.
/// What it gives for unusual rows of x or w is of no meaning.
template <int n, class W>
DSV4_TARGET void product(const packed_rows& x, const storage_matrix<const W>& w, float* y, std::int64_t ldy) {
  for (row_streams at = streams_of<W>(w, tile); !at.done(); at.advance()) {
    alignas(64) float sums[n][tile] = {};
    multiply_tile<n, W>(x, w, at, sums);
    write_sums(at, n, sums[0], tile, y, ldy);
  }
}

#undef DSV4_LANE
#undef DSV4_TARGET

}  // namespace dsv4::detail::vnni_mxfp4
#endif
