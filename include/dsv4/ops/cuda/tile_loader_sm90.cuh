// SPDX-License-Identifier: Apache-2.0
/// Tiles of matrices on their way to Hopper's matrix units: bf16 as it is, block-scaled formats decoded.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

/// Which pieces of a tile of `Rows` x `Columns` a thread of `Threads` brings; `PerPanel` make up 64 columns.
/// A tile is one panel of 64 columns after the other, each as tile_offset says. Eight neighbouring threads
/// write different banks, a warp reads whole stretches of rows.
template <int Rows, int Columns, int PerPanel, int Threads>
struct tile_pieces {
  static constexpr int panels = Columns / 64, rows_at_once = Threads / (PerPanel * panels);
  static constexpr int count = Rows / rows_at_once, panel_bytes = Rows * 128;
  static_assert(Rows % rows_at_once == 0);
  int row, panel, piece;  ///< of the first; the others are rows_at_once rows apart

  __device__ explicit tile_pieces(int thread)
      : row(thread / PerPanel % (8 / PerPanel) + 8 / PerPanel * (thread / (8 * panels))),
        panel(thread / 8 % panels),
        piece(thread % PerPanel) {}
  __device__ int column() const { return 64 * panel + 64 / PerPanel * piece; }
  /// The byte offset of 16-byte part `part` of piece `i`.
  __device__ std::uint32_t offset(int i, int part) const {
    return static_cast<std::uint32_t>(panel * panel_bytes) +
           tile_offset(row + rows_at_once * i, 8 / PerPanel * piece + part);
  }
};

/// Brings tiles of `Rows` x `Columns` of a matrix to shared memory, by `Threads` threads: the one right of
/// the last, or the one below (`Down`), each time next() is called, `last` telling that none will follow. Of
/// the `rows` rows from `row` on; what is outside of the matrix is zero.
template <class M, int Rows, int Columns, bool Down, int Threads = 128>
struct tile_loader;

/// bf16: copied past the registers.
template <class E, int Rows, int Columns, bool Down, int Threads>
requires std::same_as<std::remove_const_t<E>, bf16>
struct tile_loader<view<E, 2, space::device>, Rows, Columns, Down, Threads> {
  using pieces = tile_pieces<Rows, Columns, 8, Threads>;
  pieces own;
  const bf16 *from, *somewhere;
  std::int64_t stride;
  int rows, columns;  ///< left, from this thread's first piece on

  __device__ tile_loader(const view<E, 2, space::device>& m, std::int64_t row, std::int64_t count, int column,
                         int thread)
      : own(thread),
        from(m.data + (row + own.row) * m.stride[0] + column + own.column()),
        somewhere(m.data),
        stride(m.stride[0]),
        rows(static_cast<int>(min(count, std::int64_t{1} << 30)) - own.row),
        columns(static_cast<int>(m.extent[1]) - column - own.column()) {}
  __device__ void next(bool, std::uint32_t tile) {
#pragma unroll
    for (int i = 0; i < pieces::count; ++i) {
      const bool valid = columns > 0 && pieces::rows_at_once * i < rows;
      copy_16(tile + own.offset(i, 0), valid ? from + pieces::rows_at_once * i * stride : somewhere, valid);
    }
    if constexpr (Down)
      from += Rows * stride, rows -= Rows;
    else
      from += Columns, columns -= Columns;
  }
};

/// Block-scaled: decoded in registers, up to four pieces of 16 bytes at a time, while the next are on their
/// way.
template <class F, int Rows, int Columns, bool Down, int Threads>
struct tile_loader<block_scaled_matrix<const F, space::device>, Rows, Columns, Down, Threads> {
  static constexpr int codes = codes_per_16<F>;
  using pieces = tile_pieces<Rows, Columns, 64 / codes, Threads>;
  static constexpr int at_once = pieces::count < 4 ? pieces::count : 4, batches = pieces::count / at_once;
  static_assert(pieces::count % at_once == 0);
  struct batch {
    uint4 codes[at_once];
    e8m0 scale[at_once];
  };
  block_scaled_matrix<const F, space::device> m;
  pieces own;
  std::int64_t row;
  int rows, column;
  batch held;

  __device__ tile_loader(const block_scaled_matrix<const F, space::device>& matrix, std::int64_t row_,
                         std::int64_t count, int column_, int thread)
      : m(matrix),
        own(thread),
        row(row_ + own.row),
        rows(static_cast<int>(min(count, std::int64_t{1} << 30)) - own.row),
        column(column_ + own.column()) {
    held = fetch(0);
  }
  __device__ void next(bool last, std::uint32_t tile) {
#pragma unroll
    for (int b = 0; b < batches; ++b) {
      batch following = held;
      if (b + 1 < batches) {
        following = fetch(b + 1);
      } else {
        if constexpr (Down)
          row += Rows, rows -= Rows;
        else
          column += Columns;
        if (!last) following = fetch(0);
      }
      store(b, tile);
      held = following;
    }
  }

 private:
  __device__ batch fetch(int b) const {
    batch got;
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int r = pieces::rows_at_once * (b * at_once + i);
      got.codes[i] = make_uint4(0, 0, 0, 0);
      got.scale[i] = e8m0();
      if (r < rows && column < m.extent[1]) {
        got.codes[i] = __ldg(reinterpret_cast<const uint4*>(m.row(row + r) + F::row_bytes(column)));
        got.scale[i] = m.row_scales(row + r)[column / F::block_columns];
      }
    }
    return got;
  }
  __device__ void store(int b, std::uint32_t tile) const {
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      std::uint32_t out[codes / 2];
      decode_16<F>(held.codes[i], held.scale[i], out);
#pragma unroll
      for (int j = 0; j < codes / 8; ++j)
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + own.offset(b * at_once + i, j)),
                     "r"(out[4 * j]), "r"(out[4 * j + 1]), "r"(out[4 * j + 2]), "r"(out[4 * j + 3])
                     : "memory");
    }
  }
};

}  // namespace dsv4::detail
