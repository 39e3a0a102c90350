// SPDX-License-Identifier: Apache-2.0
/// Threaded products in bf16, of narrow weights and FP8 inputs; of their rounding holds what gemm.hpp says.
#pragma once

#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/cpu/gemm_dispatch.hpp>
#include <dsv4/ops/cpu/stored_amx.hpp>
#include <dsv4/ops/cpu/stored_bf16.hpp>
#include <dsv4/ops/cpu/stored_kernels.hpp>
#include <dsv4/ops/cpu/stored_vnni_mxfp4.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

namespace dsv4::detail {

#if DSV4_X86_KERNELS
/// What a product works in, of the calling thread. Kept between calls, as fresh memory costs page faults, and
/// giving it back stops the other threads.
inline workspace& kept_workspace() {
  thread_local workspace kept;
  return kept;
}

/// Computes what is unusual of y = x w^T again, in float. What that is depends on the numbers of a row only.
template <class W, class X>
void repeat_unusual(const storage_matrix<const X>& x, const bool* strange, const storage_matrix<const W>& w,
                    float* y, std::int64_t ldy) {
  const std::int64_t n = x.extent[0], o = w.extent[0], k = x.extent[1];
  const auto again = [&](std::int64_t r, std::int64_t rs, std::int64_t j, std::int64_t js) {
    const std::unique_ptr<float[]> wide(new float[static_cast<std::size_t>(rs * k) + stored_scratch<float>]);
    decode_rows<float, X>(x.rows(r, rs), wide.get());
    for (std::int64_t i = 0; i < js; i += stored_block_rows)
      best_stored_kernels<float, W>().product(wide.get(), k, rs,
                                              w.rows(j + i, std::min(js - i, stored_block_rows)),
                                              wide.get() + rs * k, y + r * ldy + j + i, ldy);
  };
  if (k == 0) return again(0, n, 0, o);
  const std::int64_t scales = W::scale_columns(k);
  const bool dense = W::block_rows == 1 && w.scale_row_stride == scales;
  if (!dense || avx512_bf16::unusual(w.row_scales(0), o * scales))
    for (std::int64_t j = 0; j < o; ++j)
      if (avx512_bf16::unusual(w.row_scales(j), scales)) again(0, n, j, 1);
  for (std::int64_t r = 0; r < n; ++r)
    if (strange[r]) again(r, 1, 0, o);
}

/// bf16_gemm_nt where there are tiles. By MXFP4 they take products of more than a few rows of x only, and
/// numbers that lie far apart are split.
template <class W, class X>
void tiled_gemm_nt(const exec::cpu& p, const storage_matrix<const X>& x, const matrix_view<float>& y,
                   std::span<const bf16_problem<W>> problems) {
  static_assert(amx::most_rows >= most_block_rows && most_block_rows % amx::tile == 0);
  namespace vnni = vnni_mxfp4;
  constexpr bool splits = W::packed;
  const std::int64_t o = y.extent[1], k = x.extent[1], pieces = vnni::pieces(k), parts = vnni::blocks(k);
  const std::int64_t columns = avx512_bf16::packed_columns(k), steps = columns / 32;
  const auto count = static_cast<std::int64_t>(problems.size());
  const auto problem = [&](std::int64_t i) -> const bf16_problem<W>& {
    return problems[static_cast<std::size_t>(i)];
  };
  const auto is_few = [&](std::int64_t i) { return splits && problem(i).rows <= vnni::most_rows; };
  struct block {
    std::int64_t product, row, rows;  // within the product
  };
  std::vector<block> blocks;
  // Products of few rows; where the rows of each product begin among those of its kind, and its blocks.
  std::vector<std::int64_t> few, row_at, block_at;
  std::int64_t few_rows = 0, many_rows = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t n = problem(i).rows;
    std::int64_t& at = is_few(i) ? few_rows : many_rows;
    if (is_few(i) && n > 0) few.push_back(i);
    row_at.push_back(at), block_at.push_back(static_cast<std::int64_t>(blocks.size()));
    at += n;
    for (std::int64_t r = 0; r < n; r += amx::tile) blocks.push_back({i, r, std::min(amx::tile, n - r)});
  }
  workspace& kept = kept_workspace();
  const workspace::scope scope(kept);
  const std::int64_t elements = amx::packed_elements(many_rows, k);
  const auto all_blocks = static_cast<std::int64_t>(blocks.size());
  vnni::packed_piece* const digits = kept.take<vnni::packed_piece>(2 * few_rows * pieces).data;
  std::uint16_t* const packed = kept.take<std::uint16_t>(elements).data;
  std::uint16_t* const rest = kept.take<std::uint16_t>(splits ? elements : 0).data;
  bool* const few_more = kept.take<bool>(few_rows * pieces).data;
  bool* const many_more = kept.take<bool>(all_blocks * steps).data;
  bool* const strange = kept.take<bool>(x.extent[0]).data;
  std::fill_n(few_more, few_rows * pieces, false);
  std::fill_n(many_more, all_blocks * steps, false);
  const auto pack = [&](std::int64_t index, std::uint8_t* codes, std::uint16_t* room, bool* needed) {
    const block b = blocks[static_cast<std::size_t>(index)];
    const std::int64_t r = problem(b.product).first + b.row;
    const std::int64_t to = row_at[static_cast<std::size_t>(b.product)] + b.row;
    if (!splits) return amx::pack_block<W, X>(x.rows(r, b.rows), room, packed + to * columns, strange + r);
    storage_matrix<const X> large = x.rows(r, b.rows), small = large;
    large.codes = codes, small.codes = codes + b.rows * k;
    large.row_stride = small.row_stride = k;
    bool any = false;
    for (std::int64_t i = 0; i < b.rows; ++i)
      any |= vnni::split(x.row(r + i), k, codes + i * k, codes + (b.rows + i) * k, needed + i * parts);
    if (is_few(b.product)) {
      for (std::int64_t i = 0; i < b.rows; ++i) {
        vnni::packed_piece* const piece = digits + 2 * (to + i) * pieces;
        strange[r + i] = vnni::pack(large.row(i), large.row_scales(i), k, piece) ||
                         avx512_bf16::unusual(x.row_scales(r + i), X::scale_columns(k));
        if (any) vnni::pack(small.row(i), small.row_scales(i), k, piece + pieces);
        for (std::int64_t c = 0; c < parts; ++c) few_more[(to + i) * pieces + c / 4] |= needed[i * parts + c];
      }
    } else {
      amx::pack_block<W, X>(large, room, packed + to * columns, strange + r);
      bool no_strange[amx::tile];
      if (any) amx::pack_block<W, X>(small, room, rest + to * columns, no_strange);
      for (std::int64_t c = 0; c < b.rows * parts; ++c) many_more[index * steps + c % parts] |= needed[c];
    }
  };
  if (k > 0)
    p.parallel_for(all_blocks, 1 + 4096 / k, [&](std::int64_t begin, std::int64_t end) {
      workspace& own = kept_workspace();
      const workspace::scope task(own);
      std::uint8_t* const codes = own.take<std::uint8_t>(2 * amx::tile * columns).data;
      std::uint16_t* const room = own.take<std::uint16_t>(amx::tile * columns).data;
      bool* const needed = own.take<bool>(amx::tile * parts).data;
      for (; begin < end; ++begin) pack(begin, codes, room, needed);
    });
  const std::int64_t tiles = (o + vnni::tile - 1) / vnni::tile;
  if constexpr (splits)
    p.parallel_for(static_cast<std::int64_t>(few.size()) * tiles, 1 + 32768 / (vnni::tile * (k + 1)),
                   [&](std::int64_t begin, std::int64_t end) {
                     while (begin < end) {
                       const std::int64_t i = few[static_cast<std::size_t>(begin / tiles)], g = begin % tiles;
                       const std::int64_t some = std::min(tiles - g, end - begin), j = g * vnni::tile;
                       const std::int64_t r = problem(i).first, n = problem(i).rows,
                                          width = std::min(some * vnni::tile, o - j);
                       const std::int64_t at = row_at[static_cast<std::size_t>(i)] * pieces;
                       const storage_matrix<const W> w = problem(i).w.rows(j, width);
                       const vnni::packed_rows own{digits + 2 * at, few_more + at};
                       float* const out = y.data + r * y.stride[0] + j;
                       if (k > 0 && n == 1) vnni::product<1, W>(own, w, out, y.stride[0]);
                       if (k > 0 && n == 2) vnni::product<2, W>(own, w, out, y.stride[0]);
                       repeat_unusual<W, X>(x.rows(r, n), strange + r, w, out, y.stride[0]);
                       begin += some;
                     }
                   });
  for_each_block(
      p, count, o, k, [&](std::int64_t i) { return is_few(i) ? 0 : problem(i).rows; },
      [&](std::int64_t i, std::int64_t n0, std::int64_t n, std::int64_t o0, std::int64_t width) {
        thread_local const std::unique_ptr<amx::scratch> scratch(new amx::scratch);
        const std::int64_t r = problem(i).first + n0,
                           at = (row_at[static_cast<std::size_t>(i)] + n0) * columns;
        const storage_matrix<const W> w = problem(i).w.rows(o0, width);
        const bool* const more = many_more + (block_at[static_cast<std::size_t>(i)] + n0 / amx::tile) * steps;
        float* const out = y.data + r * y.stride[0] + o0;
        if (k > 0) amx::product<W>({packed + at, rest + at, more}, n, w, *scratch, out, y.stride[0]);
        repeat_unusual<W, X>(x.rows(r, n), strange + r, w, out, y.stride[0]);
      },
      amx::tile);
}

/// bf16_gemm_nt by AMX, `tiles`, or without.
template <class W, class X>
void bf16_gemm_nt(const exec::cpu& p, const storage_matrix<const X>& x, const matrix_view<float>& y,
                  std::span<const bf16_problem<W>> problems, bool tiles) {
  if (tiles) return tiled_gemm_nt<W, X>(p, x, y, problems);
  const std::int64_t all = x.extent[0], o = y.extent[1], k = x.extent[1];
  const std::int64_t columns = avx512_bf16::packed_columns(k);
  workspace& kept = kept_workspace();
  const workspace::scope scope(kept);
  std::uint16_t* const packed = kept.take<std::uint16_t>(all * columns).data;
  bool* const strange = kept.take<bool>(all).data;
  p.parallel_for(all, 1 + 65536 / (k + 1), [&](std::int64_t begin, std::int64_t end) {
    avx512_bf16::pack<W, X>(x.rows(begin, end - begin), packed + begin * columns, strange + begin);
  });
  for_each_block(
      p, static_cast<std::int64_t>(problems.size()), o, k,
      [&](std::int64_t i) { return problems[static_cast<std::size_t>(i)].rows; },
      [&](std::int64_t i, std::int64_t n0, std::int64_t n, std::int64_t o0, std::int64_t width) {
        const bf16_problem<W>& g = problems[static_cast<std::size_t>(i)];
        const std::int64_t r0 = g.first + n0;
        const storage_matrix<const W> w = g.w.rows(o0, width);
        float* const out = y.data + r0 * y.stride[0] + o0;
        if (k > 0) {
          thread_local const std::unique_ptr<std::uint16_t[]> scratch(
              new std::uint16_t[stored_block_rows * avx512_bf16::scratch_stride]);
          avx512_bf16::product<W>(packed + r0 * columns, n, w, scratch.get(), out, y.stride[0]);
        }
        repeat_unusual<W, X>(x.rows(r0, n), strange + r0, w, out, y.stride[0]);
      });
}
#endif

template <class T, class W, class X>
bool bf16_products() {
#if DSV4_X86_KERNELS
  static const bool can = supported(instruction_set::avx512_vbmi) && __builtin_cpu_supports("avx512bf16");
  return can && has_bf16_products<T, W, X>;
#else
  return false;
#endif
}

template <class W, class X>
void bf16_gemm_nt([[maybe_unused]] const exec::cpu& p, [[maybe_unused]] const storage_matrix<const X>& x,
                  [[maybe_unused]] const matrix_view<float>& y,
                  [[maybe_unused]] std::span<const bf16_problem<W>> problems) {
#if DSV4_X86_KERNELS
  bf16_gemm_nt<W, X>(p, x, y, problems, amx::available());
#else
  std::abort();  // bf16_products was false
#endif
}

}  // namespace dsv4::detail
