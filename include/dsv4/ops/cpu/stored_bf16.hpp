// SPDX-License-Identifier: Apache-2.0
/// Products of block-scaled weights and inputs with AVX-512's bf16 dot product: twice the multiply-adds of a
/// float FMA, and weights are decoded to half the bytes. Elements times a power of two are exact in bf16, and
/// so are their products in float; sums are rounded as floats are.
///
/// The instruction flushes subnormals. Rows whose scales lie within 2^-48 ... 2^48 cannot make any: all sums
/// are multiples of 2^-114. Rows that have other scales, or NaN, are `unusual` and for the float kernels.
#pragma once

#include <dsv4/ops/cpu/gemm_avx512.hpp>
#include <dsv4/ops/cpu/row_streams.hpp>
#include <dsv4/ops/cpu/stored_portable.hpp>
#include <dsv4/ops/cpu/stored_vbmi.hpp>

#include <array>
#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx512_bf16 {

using avx512_vbmi::e4m3_table, avx512_vbmi::unusual;

#define DSV4_TARGET \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma")]] inline
#define DSV4_LANE                                                                     \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma"), \
    gnu::always_inline]] static inline

/// Columns of one chunk of a dot product, and of one step within it.
inline constexpr std::int64_t chunk = chunk_bytes / 2, step = 64;
/// From one row of scratch to the next: not a multiple of 4096 bytes, which would all share few cache lines.
inline constexpr std::int64_t scratch_stride = chunk + 32;

/// The bf16 codes of E2M1 times every scale that is not unusual, twice each. Zeros are all +0, which is as
/// good in sums that begin with it.
alignas(64) inline constexpr auto e2m1_codes = [] {
  std::array<std::array<std::uint16_t, 32>, 256> codes{};
  for (unsigned scale = 127 - 48; scale <= 127 + 48; ++scale)
    for (unsigned i = 0; i < 32; ++i)
      if (i % 8 != 0)
        codes[scale][i] = static_cast<std::uint16_t>(
            (__builtin_bit_cast(unsigned, element_values<e2m1>[i]) >> 16) + (scale - 127) * 128);
  return codes;
}();

/// R rows of a stored matrix, at most a chunk of columns, as bf16: `load` gives 64 columns in an order that
/// is that of `order`.
template <class W, int R>
struct rows;

template <int Rows, scale_rule Rule, int R>
struct rows<block_scaled<e4m3, Rows, 128, Rule>, R> {
  static constexpr int vectors = 2;
  const std::uint8_t* codes = nullptr;
  std::int64_t stride = 0;
  e4m3_table tables[chunk / 128];

  /// `to` becomes rows [r, r + R), which share their scales, columns [c, c + n).
  DSV4_LANE void open(const auto& m, std::int64_t r, std::int64_t c, std::int64_t n, rows& to) {
    to.codes = m.row(r) + c, to.stride = m.row_stride;
    const e8m0* scales = m.row_scales(r) + c / 128;
    for (std::int64_t i = 0; i < (n + 127) / 128; ++i) e4m3_table::make(scales[i], to.tables[i]);
  }
  /// Step `i` of those from column c of row j on, which is a multiple of 128, all of whose columns there are.
  DSV4_LANE void load_step(std::int64_t j, std::size_t c, int i, const rows& w, __m512i (&to)[2]) {
    e4m3_table::look_up(w.tables[c / 128], _mm512_loadu_si512(w.codes + j * w.stride + c + 64 * i), to);
  }
  /// The n columns left, at most 64; zeros behind them.
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const rows& w, __m512i (&to)[2]) {
    if (n >= 64) [[likely]]
      return e4m3_table::look_up(w.tables[c / 128], _mm512_loadu_si512(w.codes + j * w.stride + c), to);
    std::uint8_t last[64] = {};
    std::memcpy(last, w.codes + j * w.stride + c, static_cast<std::size_t>(n));
    e4m3_table::look_up(w.tables[c / 128], _mm512_loadu_si512(last), to);
  }
  /// From the order in which look_up leaves them: the same.
  DSV4_LANE void order(__m512i (&)[2]) {}
};

template <scale_rule Rule, int R>
struct rows<block_scaled<e2m1, 1, 32, Rule>, R> {
  static constexpr int vectors = 2;
  const std::uint8_t* codes = nullptr;
  const e8m0* scales = nullptr;
  std::int64_t stride = 0, scale_stride = 0;

  DSV4_LANE void open(const auto& m, std::int64_t r, std::int64_t c, std::int64_t, rows& to) {
    to.codes = m.row(r) + c / 2, to.stride = m.row_stride;
    to.scales = m.row_scales(r) + c / 32, to.scale_stride = m.row_scales(r + 1) - m.row_scales(r);
  }
  DSV4_LANE __m512i decode(__m128i group, e8m0 scale) {
    const __m512i table = _mm512_load_si512(e2m1_codes[scale.bits].data());
    // Every 128 bits get all 32 nibbles, four to a word, and shift another one down. The look-up reads five
    // bits of an index, hence its two copies.
    const __m512i nibble = _mm512_set_epi64(0x000c000c000c000c, 0x000c000c000c000c, 0x0008000800080008,
                                            0x0008000800080008, 0x0004000400040004, 0x0004000400040004, 0, 0);
    return _mm512_maskz_permutexvar_epi16(
        0xffffffffu,
        _mm512_maskz_srlv_epi16(0xffffffffu, _mm512_maskz_broadcast_i32x4(0xffff, group), nibble), table);
  }
  DSV4_LANE void load_step(std::int64_t j, std::size_t c, int i, const rows& w, __m512i (&to)[2]) {
    const std::uint8_t* const codes = w.codes + j * w.stride + c / 2 + 32 * i;
    const e8m0* const scales = w.scales + j * w.scale_stride + c / 32 + 2 * i;
    DSV4_UNROLL for (int v = 0; v < 2; ++v) {
      __m128i group;
      std::memcpy(&group, codes + 16 * v, sizeof group);
      to[v] = decode(group, scales[v]);
    }
  }
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const rows& w, __m512i (&to)[2]) {
    if (n >= 64) [[likely]] {
      DSV4_UNROLL for (int v = 0; v < 2; ++v) {
        __m128i group;
        std::memcpy(&group, w.codes + j * w.stride + c / 2 + 16 * v, sizeof group);
        to[v] = decode(group, w.scales[j * w.scale_stride + c / 32 + v]);
      }
      return;
    }
    std::uint8_t last[32] = {};
    std::memcpy(last, w.codes + j * w.stride + c / 2, static_cast<std::size_t>((n + 1) / 2));
    if (n % 2) last[n / 2] &= 0xF;
    to[1] = _mm512_setzero_si512();
    DSV4_UNROLL for (int v = 0; v < 2; ++v) {
      __m128i group;
      std::memcpy(&group, last + 16 * v, sizeof group);
      if (n > 32 * v) to[v] = decode(group, w.scales[j * w.scale_stride + c / 32 + v]);
    }
  }
  /// The word 8 a + b of a group is that of column 4 b + a.
  DSV4_LANE void order(__m512i (&v)[2]) {
    static constexpr auto from = [] {
      std::array<std::uint16_t, 64> at{};
      for (unsigned i = 0; i < 64; ++i) {
        const unsigned column = i / 32 * 32 + i % 8 * 4 + i % 32 / 8;
        at[i] = static_cast<std::uint16_t>(column % 16 / 8 * 32 + column / 16 * 8 + column % 8);
      }
      return at;
    }();
    const __m512i front = _mm512_permutex2var_epi16(v[0], _mm512_loadu_si512(from.data()), v[1]);
    v[1] = _mm512_permutex2var_epi16(v[0], _mm512_loadu_si512(from.data() + 32), v[1]);
    v[0] = front;
  }
};

/// Rows that are bf16 already, in order and with zeros up to a step.
struct packed_rows {
  static constexpr int vectors = 1;
  const std::uint16_t* data;
  std::int64_t stride;

  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t, const packed_rows& w, __m512i (&to)[1]) {
    to[0] = _mm512_loadu_si512(w.data + j * w.stride + c);
  }
};

/// Columns of a packed row.
constexpr std::int64_t packed_columns(std::int64_t k) { return (k + step - 1) / step * step; }

/// Rows of inputs as `W` wants them, and which are unusual.
template <class W, class X>
DSV4_TARGET void pack(const storage_matrix<const X>& x, std::uint16_t* to, bool* strange) {
  const std::int64_t k = x.extent[1], blocks = X::scale_columns(k);
  for (std::int64_t r = 0; r < x.extent[0]; ++r) {
    __mmask64 nan = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      e4m3_table table;
      e4m3_table::make(x.row_scales(r)[b], table);
      const std::int64_t end = std::min<std::int64_t>(k, (b + 1) * X::block_columns);
      for (std::int64_t c = b * X::block_columns; c < end; c += step) {
        const __mmask64 there = end - c >= step ? ~__mmask64{0} : (__mmask64{1} << (end - c)) - 1;
        const __m512i codes = _mm512_maskz_loadu_epi8(there, x.row(r) + c);
        const __m512i all = _mm512_set1_epi8(0x7f);
        nan |= _mm512_cmpeq_epi8_mask(_mm512_and_si512(codes, all), all);
        __m512i v[2];
        e4m3_table::look_up(table, codes, v);
        rows<W, 1>::order(v);
        _mm512_storeu_si512(to + c, v[0]);
        _mm512_storeu_si512(to + c + 32, v[1]);
      }
    }
    *strange++ = nan != 0 || unusual(x.row_scales(r), blocks);
    to += packed_columns(k);
  }
}

/// What is fetched while the columns of a step, from c on, are read: of these rows of w, from `column` on.
template <class W>
struct row_fetches {
  const storage_matrix<const W>& w;
  const rows_abreast& at;
  std::int64_t column;

  strided_bytes from(std::int64_t c) const { return fetched_at<W>(w, at, W::row_bytes(column + c)); }
  /// The line of row j, once in as many steps as it has.
  DSV4_LANE void fetch(int j, std::int64_t c, const strided_bytes& ahead) {
    constexpr int steps = W::packed ? 2 : 1;
    if (j % steps == c / step % steps) __builtin_prefetch(ahead.first + j * ahead.stride, 0, 3);
    asm volatile("");  // else the fetches move together
  }
};
/// For rows that are in the caches.
struct no_fetches {
  static int from(std::int64_t) { return 0; }
  static void fetch(int, std::int64_t, int) {}
};

/// One chunk of dot products: RX packed rows of x against RW rows of w. Writes y, or adds to it. The order of
/// operations is that of gemm_tile.hpp, with the instruction's own inside.
template <int RX, int RW, class Rows, class Fetches = no_fetches>
DSV4_TARGET void dot_tile(const std::uint16_t* x, std::int64_t ldx, const Rows& w, std::int64_t k, float* y,
                          std::int64_t ldy, bool add, const Fetches& fetches = {}) {
  using L = avx512::lanes<float>;
  constexpr int vectors = Rows::vectors;
  __m512 acc[RX][RW];
  DSV4_UNROLL for (int i = 0; i < RX; ++i) { DSV4_UNROLL for (int j = 0; j < RW; ++j) acc[i][j] = L::zero(); }
  for (std::int64_t c = 0; c < k; c += 32 * vectors) {
    const auto ahead = fetches.from(c);
    __m512i row[RX][vectors];
    DSV4_UNROLL for (int i = 0; i < RX; ++i) {
      DSV4_UNROLL for (int v = 0; v < vectors; ++v) row[i][v] = _mm512_loadu_si512(x + i * ldx + c + 32 * v);
    }
    DSV4_UNROLL for (int j = 0; j < RW; ++j) {
      Fetches::fetch(j, c, ahead);
      __m512i column[vectors];
      Rows::load(j, c, k - c, w, column);
      DSV4_UNROLL for (int v = 0; v < vectors; ++v) {
        DSV4_UNROLL for (int i = 0; i < RX; ++i) acc[i][j] = _mm512_dpbf16_ps(
            acc[i][j], reinterpret_cast<__m512bh>(row[i][v]), reinterpret_cast<__m512bh>(column[v]));
      }
    }
  }
  DSV4_UNROLL for (int i = 0; i < RX; ++i) {
    float* out = y + i * ldy;
    if constexpr (RW % 4 == 0) {
      DSV4_UNROLL for (int j = 0; j < RW; j += 4)
          L::reduce4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3], out + j, add);
    } else {
      DSV4_UNROLL for (int j = 0; j < RW; ++j) {
        const float sum = L::reduce(acc[i][j]);
        out[j] = add ? out[j] + sum : sum;
      }
    }
  }
}

/// How many rows from j on, at most R, share their scales.
template <class W>
std::int64_t rows_of_block(const storage_matrix<const W>& w, std::int64_t j, std::int64_t most) {
  if (W::block_rows == 1) return most;
  return std::min<std::int64_t>(most, W::block_rows - (w.skipped_rows + j) % W::block_rows);
}

/// y = x w^T for RX rows of x: weights are decoded in registers.
template <class W, int RX>
DSV4_TARGET void few(const std::uint16_t* x, std::int64_t ldx, const storage_matrix<const W>& w, float* y,
                     std::int64_t ldy) {
  constexpr int R = RX <= 2 ? 8 : 4;
  const std::int64_t k = w.extent[1];
  for (row_streams at = streams_of<W>(w, R); !at.done(); at.advance()) {
    const storage_matrix<const W> own = rows_at<W>(w, at);
    const bool tile = at.count == R && rows_of_block<W>(own, 0, R) == R;
    float sums[RX][R] = {};
    for (std::int64_t c = 0; c < k; c += chunk) {
      const std::int64_t depth = std::min(chunk, k - c);
      if (tile) {
        rows<W, R> some;
        rows<W, R>::open(own, 0, c, depth, some);
        dot_tile<RX, R>(x + c, ldx, some, depth, sums[0], R, c > 0, row_fetches<W>{w, at, c});
      } else {
        for (std::int64_t j = 0; j < at.count; ++j) {
          rows<W, 1> one;
          rows<W, 1>::open(own, j, c, depth, one);
          for (int i = 0; i < RX; ++i)
            dot_tile<1, 1>(x + i * ldx + c, ldx, one, depth, sums[i] + j, R, c > 0);
        }
      }
    }
    write_sums(at, RX, sums[0], R, y, ldy);
  }
}

template <int RX>
DSV4_TARGET void packed_product(const std::uint16_t* x, std::int64_t ldx, const std::uint16_t* w,
                                std::int64_t o, std::int64_t k, float* y, std::int64_t ldy, bool add) {
  std::int64_t j = 0;
  for (; j + 4 <= o; j += 4)
    dot_tile<RX, 4>(x, ldx, packed_rows{w + j * scratch_stride, scratch_stride}, k, y + j, ldy, add);
  for (; j < o; ++j)
    for (int i = 0; i < RX; ++i)
      dot_tile<1, 1>(x + i * ldx, ldx, packed_rows{w + j * scratch_stride, scratch_stride}, k,
                     y + i * ldy + j, ldy, add);
}

/// y[n, o] = x[n, k] w[o, k]^T for packed x, k > 0 and o at most stored_block_rows; scratch for that many
/// chunks. What it gives for unusual rows of x or w is of no meaning.
template <class W>
DSV4_TARGET void product(const std::uint16_t* x, std::int64_t n, const storage_matrix<const W>& w,
                         std::uint16_t* scratch, float* y, std::int64_t ldy) {
  const std::int64_t o = w.extent[0], k = w.extent[1], ldx = packed_columns(k);
  if (n <= 8) {
    for (; n >= 4; n -= 4, x += 4 * ldx, y += 4 * ldy) few<W, 4>(x, ldx, w, y, ldy);
    if (n == 3) few<W, 3>(x, ldx, w, y, ldy);
    if (n == 2) few<W, 2>(x, ldx, w, y, ldy);
    if (n == 1) few<W, 1>(x, ldx, w, y, ldy);
    return;
  }
  for (std::int64_t c = 0; c < k; c += chunk) {
    const std::int64_t depth = std::min(chunk, k - c), packed = packed_columns(depth);
    for (std::int64_t j = 0; j < o; ++j) {
      rows<W, 1> one;
      rows<W, 1>::open(w, j, c, depth, one);
      for (std::int64_t i = 0; i < depth; i += step) {
        __m512i v[2];
        rows<W, 1>::load(0, i, depth - i, one, v);
        _mm512_storeu_si512(scratch + j * scratch_stride + i, v[0]);
        _mm512_storeu_si512(scratch + j * scratch_stride + i + 32, v[1]);
      }
    }
    std::int64_t i = 0;
    for (; i + 6 <= n; i += 6)
      packed_product<6>(x + i * ldx + c, ldx, scratch, o, packed, y + i * ldy, ldy, c > 0);
    for (; i + 3 <= n; i += 3)
      packed_product<3>(x + i * ldx + c, ldx, scratch, o, packed, y + i * ldy, ldy, c > 0);
    for (; i < n; ++i) packed_product<1>(x + i * ldx + c, ldx, scratch, o, packed, y + i * ldy, ldy, c > 0);
  }
}

#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx512_bf16
#endif
