// SPDX-License-Identifier: Apache-2.0
/// The products of stored_bf16.hpp on AMX tiles: sixteen rows of weights, decoded to bf16, times up to
/// sixteen rows of inputs per instruction. One row costs as much as sixteen, so that decoding and memory are
/// what products of few rows wait for.
///
/// Every element of y is one chain of sums over k in an order of its own, whatever else a tile holds: the
/// same bits alone and in any batch. With MXFP4 weights the sum of every 32 columns is exact, as told in
/// stored_vnni_mxfp4.hpp. Subnormals are flushed as they are there; of unusual rows holds the same.
#pragma once

#include <dsv4/ops/cpu/stored_bf16.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#if DSV4_X86_KERNELS
#include <cpuid.h>
#include <immintrin.h>
#endif
#if DSV4_X86_KERNELS && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if DSV4_X86_KERNELS

namespace dsv4::detail::amx {

#define DSV4_TARGET \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma")]] inline
#define DSV4_LANE                                                                     \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx2,fma"), \
    gnu::always_inline]] static inline

/// Whether this machine has tiles of bf16, with the instructions beside them that such machines have, and the
/// system lets this process use them: it has to be asked, for tiles make what it saves of a thread larger.
inline bool available() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  static const bool has = [] {
    constexpr unsigned gfni_and_vnni = 1u << 8 | 1u << 11, bf16_and_tiles = 1u << 22 | 1u << 24;
    constexpr long request_permission = 0x1023, tile_data = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & gfni_and_vnni) == gfni_and_vnni &&
           (d & bf16_and_tiles) == bf16_and_tiles &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return has;
#else
  return false;
#endif
}

/// Rows of a tile of weights, and of a block of inputs; columns that are decoded at a time, and how often so
/// many before they are multiplied by many rows.
inline constexpr std::int64_t tile = 16, piece = 128, pieces = 2;
inline constexpr std::int64_t piece_stride = piece + 32;  ///< not a multiple of 4096 bytes
/// Rows of inputs that one product takes, at most.
inline constexpr std::int64_t most_rows = 192;

/// What a product works in.
struct scratch {
  alignas(64) std::uint16_t weights[pieces * 2 * tile * piece_stride];
  alignas(64) float sums[most_rows / tile][2 * tile][tile];
};

/// Elements of so many packed rows of inputs, and behind them what a tile reads too much.
constexpr std::int64_t packed_elements(std::int64_t rows, std::int64_t k) {
  return rows * avx512_bf16::packed_columns(k) + 2 * tile;
}

/// At most `tile` rows of inputs: pairs of columns, those of all rows side by side. `room` for as much.
template <class W, class X>
DSV4_TARGET void pack_block(const storage_matrix<const X>& x, std::uint16_t* room, std::uint16_t* to,
                            bool* strange) {
  const std::int64_t n = x.extent[0], columns = avx512_bf16::packed_columns(x.extent[1]);
  if (n == 1) return avx512_bf16::pack<W, X>(x, to, strange);
  avx512_bf16::pack<W, X>(x, room, strange);
  for (std::int64_t c = 0; c < columns; c += 2)
    for (std::int64_t r = 0; r < n; ++r) std::memcpy(to + c * n + 2 * r, room + r * columns + c, 4);
}

/// Rows of inputs in blocks of pack_block. Of MXFP4 weights' inputs, what is split off in as many `rest`,
/// where `more` tells for every block and 32 columns of it that there is any.
struct packed_inputs {
  const std::uint16_t *data, *rest;
  const bool* more;
};

/// The shapes of all tiles: palette, first row, then bytes of a row and rows of each.
struct alignas(64) configuration {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Assembly and not intrinsics: those of GCC 12 do not say that they read and write memory.
#define DSV4_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::)
#define DSV4_TILE_LOAD(t, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(std::int64_t{stride}) : "memory")
#define DSV4_TILE_STORE(t, to, stride) \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(std::int64_t{stride}) : "memory")
#define DSV4_TILE_MULTIPLY_ADD(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

/// A tile of weights that is decoded piece by piece.
template <class W>
struct tile_rows {
  using rows = avx512_bf16::rows<W, tile>;
  storage_matrix<const W> weights;
  rows opened;
  std::int64_t count;
  strided_bytes ahead;  ///< what is fetched while a piece is decoded
  bool shared;          ///< their scales

  /// These rows of w.
  DSV4_LANE void begin(const storage_matrix<const W>& w, const rows_abreast& at, tile_rows& t) {
    t.weights = rows_at<W>(w, at), t.count = at.count;
    t.shared = avx512_bf16::rows_of_block<W>(t.weights, 0, at.count) == at.count;
  }
  /// Before the piece from column c on.
  DSV4_LANE void open(const storage_matrix<const W>& w, const rows_abreast& at, std::int64_t c,
                      tile_rows& t) {
    t.ahead = fetched_at<W>(w, at, W::row_bytes(c));
    if (c % avx512_bf16::chunk == 0)
      rows::open(t.weights, 0, c, std::min(avx512_bf16::chunk, w.extent[1] - c), t.opened);
  }
  /// Rows [r, r + 4) of a whole piece; as much is fetched meanwhile.
  DSV4_LANE void decode_four(std::int64_t r, std::int64_t c, std::uint16_t* to, const tile_rows& t) {
    constexpr int step = static_cast<int>(avx512_bf16::step), steps = static_cast<int>(piece) / step;
    const auto within = static_cast<std::size_t>(c % avx512_bf16::chunk);
    DSV4_UNROLL for (int a = 0; a < 4; ++a) {
      DSV4_UNROLL for (int i = 0; i < steps; ++i) {
        __m512i v[2];
        rows::load_step(r + a, within, i, t.opened, v);
        if (W::row_bytes(i * step) % 64 == 0)
          __builtin_prefetch(t.ahead.first + (r + a) * t.ahead.stride + W::row_bytes(i * step), 0, 3);
        _mm512_store_si512(to + (r + a) * piece_stride + i * step, v[0]);
        _mm512_store_si512(to + (r + a) * piece_stride + i * step + 32, v[1]);
      }
    }
  }
  /// Whether decode_four serves for n columns.
  static bool whole(std::int64_t n, const tile_rows& t) { return t.shared && t.count == tile && n == piece; }
  /// All rows of n columns, at most a piece.
  DSV4_LANE void decode(std::int64_t c, std::int64_t n, std::uint16_t* to, const tile_rows& t) {
    if (whole(n, t)) [[likely]] {
      for (std::int64_t r = 0; r < tile; r += 4) decode_four(r, c, to, t);
      return;
    }
    for (std::int64_t r = 0; r < t.count; ++r, to += piece_stride) {
      avx512_bf16::rows<W, 1> one;
      avx512_bf16::rows<W, 1>::open(t.weights, r, c, n, one);
      for (std::int64_t i = 0; i < n; i += avx512_bf16::step) {
        __m512i v[2];
        avx512_bf16::rows<W, 1>::load(0, i, n - i, one, v);
        _mm512_store_si512(to + i, v[0]);
        _mm512_store_si512(to + i + 32, v[1]);
      }
    }
  }
};

/// Writes the sums of n rows of x, which are tiles in memory: y[i, j step] = sums[i / tile][j][i % tile].
DSV4_TARGET void write_sums(const scratch& s, std::int64_t g, std::int64_t n, std::int64_t rows,
                            std::int64_t step, float* y, std::int64_t ldy) {
  const __m512i down =
      _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
  const auto there = static_cast<__mmask16>((1u << rows) - 1);
  const __m512i apart =
      _mm512_mullo_epi32(_mm512_srli_epi32(down, 4), _mm512_set1_epi32(static_cast<int>(step)));
  for (std::int64_t i = 0; i < n; ++i) {
    const __m512 row =
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, down, s.sums[i / tile][g * tile] + i % tile, 4);
    if (step == 1)
      _mm512_mask_storeu_ps(y + i * ldy, there, row);
    else
      _mm512_mask_i32scatter_ps(y + i * ldy, there, apart, row, 4);
  }
}

/// product for at most a tile of rows: sums stay in one, and each piece is multiplied while the next is
/// decoded.
template <class W>
DSV4_TARGET void few(const packed_inputs& x, std::int64_t n, const storage_matrix<const W>& w, scratch& s,
                     float* y, std::int64_t ldy) {
  const std::int64_t k = w.extent[1], pair_bytes = 4 * n, w_bytes = 2 * piece_stride;
  tile_rows<W> t;
  for (row_streams at = streams_of<W>(w, tile); !at.done(); at.advance()) {
    tile_rows<W>::begin(w, at, t);
    DSV4_TILE_ZERO(0);
    std::uint16_t *decoded = s.weights + tile * piece_stride, *to = s.weights;
    std::int64_t first = 0, left = 0;  // steps that are decoded and not multiplied yet
    const auto multiply_rest = [&](std::int64_t i) {
      if (!W::packed || !x.more[first + i]) [[likely]]
        return;
      DSV4_TILE_LOAD(6, x.rest + 32 * n * (first + i), pair_bytes);
      DSV4_TILE_MULTIPLY_ADD(0, 4, 6);
    };
    const auto multiply_left = [&] {
      for (std::int64_t i = 0; i < left; ++i) {
        DSV4_TILE_LOAD(4, decoded + 32 * i, w_bytes);
        DSV4_TILE_LOAD(6, x.data + 32 * n * (first + i), pair_bytes);
        DSV4_TILE_MULTIPLY_ADD(0, 4, 6);
        multiply_rest(i);
      }
    };
    for (std::int64_t c = 0; c < k; c += piece) {
      const std::int64_t depth = std::min(piece, k - c);
      tile_rows<W>::open(w, at, c, t);
      DSV4_TILE_STORE(7, s.sums[1], 4);  // the sums' store takes 200 ns if there was none for a microsecond
      if (left == tile / 4 && tile_rows<W>::whole(depth, t)) [[likely]] {
        for (std::int64_t i = 0; i < tile / 4; ++i) {
          DSV4_TILE_LOAD(4, decoded + 32 * i, w_bytes);
          DSV4_TILE_LOAD(6, x.data + 32 * n * (first + i), pair_bytes);
          tile_rows<W>::decode_four(4 * i, c, to, t);
          DSV4_TILE_MULTIPLY_ADD(0, 4, 6);
          multiply_rest(i);
        }
      } else {
        tile_rows<W>::decode(c, depth, to, t);
        multiply_left();
      }
      std::swap(decoded, to);
      first = c / 32, left = avx512_bf16::packed_columns(depth) / 32;
    }
    multiply_left();
    DSV4_TILE_STORE(0, s.sums[0], 4 * tile);
    write_sums(s, 0, n, t.count, at.step, y + at.first, ldy);
  }
}

/// Adds `steps` steps of 32 columns, from column c on, to the sums of n rows of x and two tiles of weights;
/// with `split` what is split off as well.
template <bool split>
inline void multiply_pieces(const packed_inputs& x, std::int64_t columns, std::int64_t c, std::int64_t n,
                            std::int64_t steps, scratch& s) {
  constexpr std::int64_t each = piece / 32, w_bytes = 2 * piece_stride, sum_bytes = 4 * tile;
  for (std::int64_t b = 0; b * tile < n; b += 2) {
    float(*const front)[tile] = s.sums[b];
    float(*const back)[tile] = s.sums[b + 1];
    // Where there is no second block the first one stands in for it.
    const bool pair = (b + 1) * tile < n;
    const std::int64_t rows = std::min(tile, n - b * tile);
    const std::int64_t next = pair ? std::min(tile, n - (b + 1) * tile) : rows;
    const std::int64_t at = b * tile * columns + c * rows;
    const std::int64_t pair_at = pair ? (b + 1) * tile * columns + c * next : at;
    const bool* const more = split ? x.more + (b * columns + c) / 32 : nullptr;
    const bool* const pair_more = split && pair ? more + columns / 32 : more;
    if (c == 0) {
      DSV4_TILE_ZERO(0);
      DSV4_TILE_ZERO(1);
      DSV4_TILE_ZERO(2);
      DSV4_TILE_ZERO(3);
    } else {
      DSV4_TILE_LOAD(0, front, sum_bytes);
      DSV4_TILE_LOAD(1, front + tile, sum_bytes);
      DSV4_TILE_LOAD(2, back, sum_bytes);
      DSV4_TILE_LOAD(3, back + tile, sum_bytes);
    }
    for (std::int64_t i = 0; i < steps; ++i) {
      const std::uint16_t* const w = s.weights + i / each * (2 * tile * piece_stride) + i % each * 32;
      DSV4_TILE_LOAD(4, w, w_bytes);
      DSV4_TILE_LOAD(6, x.data + at + 32 * i * rows, 4 * rows);
      DSV4_TILE_MULTIPLY_ADD(0, 4, 6);
      DSV4_TILE_LOAD(5, w + tile * piece_stride, w_bytes);
      DSV4_TILE_MULTIPLY_ADD(1, 5, 6);
      DSV4_TILE_LOAD(7, x.data + pair_at + 32 * i * next, 4 * next);
      DSV4_TILE_MULTIPLY_ADD(2, 4, 7);
      DSV4_TILE_MULTIPLY_ADD(3, 5, 7);
      if (split && more[i]) {
        DSV4_TILE_LOAD(6, x.rest + at + 32 * i * rows, 4 * rows);
        DSV4_TILE_MULTIPLY_ADD(0, 4, 6);
        DSV4_TILE_MULTIPLY_ADD(1, 5, 6);
      }
      if (split && pair_more[i]) {
        DSV4_TILE_LOAD(7, x.rest + pair_at + 32 * i * next, 4 * next);
        DSV4_TILE_MULTIPLY_ADD(2, 4, 7);
        DSV4_TILE_MULTIPLY_ADD(3, 5, 7);
      }
    }
    DSV4_TILE_STORE(0, front, sum_bytes);
    DSV4_TILE_STORE(1, front + tile, sum_bytes);
    DSV4_TILE_STORE(2, back, sum_bytes);
    DSV4_TILE_STORE(3, back + tile, sum_bytes);
  }
}

/// product for more: a decoded part of two tiles of weights serves them all.
template <class W>
DSV4_TARGET void many(const packed_inputs& x, std::int64_t n, const storage_matrix<const W>& w, scratch& s,
                      float* y, std::int64_t ldy) {
  const std::int64_t o = w.extent[0], k = w.extent[1];
  for (std::int64_t j = 0; j < o; j += 2 * tile) {
    tile_rows<W> t[2];
    rows_abreast at[2];
    const int tiles = o - j > tile ? 2 : 1;
    for (int g = 0; g < tiles; ++g) {
      const std::int64_t first = j + g * tile;
      at[g] = {first, std::min(tile, o - first), 1, first + 2 * tile, 1};
      tile_rows<W>::begin(w, at[g], t[g]);
    }
    for (std::int64_t c = 0; c < k; c += pieces * piece) {
      const std::int64_t depth = std::min(pieces * piece, k - c);
      for (std::int64_t i = 0; i * piece < depth; ++i)
        for (int g = 0; g < tiles; ++g) {
          const std::int64_t column = c + i * piece;
          tile_rows<W>::open(w, at[g], column, t[g]);
          tile_rows<W>::decode(column, std::min(piece, k - column),
                               s.weights + (2 * i + g) * tile * piece_stride, t[g]);
        }
      multiply_pieces<W::packed>(x, avx512_bf16::packed_columns(k), c, n,
                                 avx512_bf16::packed_columns(depth) / 32, s);
    }
    for (int g = 0; g < tiles; ++g) write_sums(s, g, n, t[g].count, 1, y + at[g].first, ldy);
  }
}

/// y[n, o] = x[n, k] w[o, k]^T for n rows of inputs, at most most_rows, in blocks of pack_block, and k > 0.
/// What it gives for unusual rows of x or w is of no meaning.
template <class W>
DSV4_TARGET void product(const packed_inputs& x, std::int64_t n, const storage_matrix<const W>& w, scratch& s,
                         float* y, std::int64_t ldy) {
  configuration shapes;
  for (int t = 0; t < 8; ++t) {
    shapes.bytes[t] = static_cast<std::uint16_t>(t == 4 || t == 5 ? 64 : 4 * std::min(n, tile));
    shapes.rows[t] = tile;
  }
  if (n <= tile) shapes.bytes[7] = 4, shapes.rows[7] = 1;
  asm volatile("ldtilecfg %0" ::"m"(shapes));
  if (n <= tile)
    few<W>(x, n, w, s, y, ldy);
  else
    many<W>(x, n, w, s, y, ldy);
  asm volatile("tilerelease" ::);
}

#undef DSV4_TILE_ZERO
#undef DSV4_TILE_LOAD
#undef DSV4_TILE_STORE
#undef DSV4_TILE_MULTIPLY_ADD
#undef DSV4_LANE
#undef DSV4_TARGET

}  // namespace dsv4::detail::amx
#endif
