// SPDX-License-Identifier: Apache-2.0
/// Matrix products with few rows on the GPU: the time is that of reading the weights, so each is read once,
/// by the warp that needs it, and the matrix units, which have little else to do, take the arithmetic.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemv_columns.cuh>
#include <dsv4/ops/cuda/gemv_mxfp4_sm90.cuh>
#include <dsv4/ops/cuda/gemv_steps.cuh>
#include <dsv4/ops/cuda/loose_pairs.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

namespace dsv4::detail {

/// Blocks per multiprocessor, as measured.
template <int Rows, bool Packed>
inline constexpr int gemv_blocks = Rows > 1 ? 2 : 4 - Packed;

/// Block (columns, slot, batch). With offsets a slot is a row, whose block runs the up to `Rows` rows of its
/// group that begin with it, or, where there are fewer groups than rows, a group, whose rows the block runs
/// `Rows` at a time. Without offsets a slot is `Rows` rows, and blockIdx.z the group.
///
/// A warp reads 512 bytes of a column's weights at once, a piece per lane, and has the next reads, of its
/// next columns too, on their way. `splits` warps share a column's weights where columns are few; their sums
/// are added in order.
template <class T, class XView, class WView, int Rows, class Second>
__global__ void __launch_bounds__(32 * gemv_warps, gemv_blocks<Rows, packed_storage<WView>>)
    gemv_kernel(gemm_problem<T, XView, WView> p, Second second, bool slots_are_groups, int splits) {
  wait_for_previous_kernels();
  constexpr int outputs = gemv_outputs, stages = gemv_stages;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float sums[2][gemv_warps][Rows][outputs];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const std::int64_t slot = blockIdx.y;
  std::int64_t begin = 0, end = 0;  // the rows of this block
  int group = static_cast<int>(blockIdx.z);
  if (!p.offsets) {
    begin = slot * Rows;
    end = min(p.y.extent[0], begin + Rows);
  } else {
    if (slots_are_groups) {
      group = static_cast<int>(slot);
    } else {
      group = group_of_row(p, slot);
      if (group >= p.groups || (slot - p.offsets[group]) % Rows != 0) return;
    }
    begin = slots_are_groups ? p.offsets[group] : slot;
    end = slots_are_groups ? p.offsets[group + 1] : min(slot + Rows, p.offsets[group + 1]);
  }
  if (begin >= end) return;

  auto x = p.x;
  if constexpr (requires { x.stride; }) x.data += group * p.x_batch;
  const gemv_columns<T, XView, WView, Second> columns{p, second, group};
  using W = typename decltype(columns)::W;
  const int inner = static_cast<int>(x.extent[1]), pieces = inner / W::count;
  uint4* const ring = reinterpret_cast<uint4*>(memory + Rows * inner * static_cast<int>(sizeof(bf16))) +
                      warp * (stages * outputs * 32) + lane;
  gemv_arithmetic<T, XView, W, Rows> products(memory, pieces);
  // This warp's part of every column, and its units.
  const int each = (pieces + 32 * splits - 1) / (32 * splits) * 32, first_piece = warp % splits * each;
  const int stride = static_cast<int>(gridDim.x) * gemv_warps / splits,
            block_unit = static_cast<int>(blockIdx.x) * gemv_warps / splits, units = columns.units();
  const int rounds = block_unit < units ? (units - 1 - block_unit) / stride + 1 : 0;
  const int steps = rounds * (each / 32);

  for (std::int64_t row = begin; row < end; row += Rows) {
    const int rows = static_cast<int>(min(end - row, std::int64_t{Rows}));
    int asked_unit = block_unit + warp / splits, unit = asked_unit, asked_piece = 0, piece = 0;
    typename W::row from[outputs];
    typename W::stored_scale scale[stages][outputs];
    const auto ask = [&](int stage, int step) {
      if (step < steps) {
#pragma unroll
        for (int o = 0; o < outputs; ++o) {
          if (asked_piece == 0) from[o] = columns.row(asked_unit, o);
          const int at = min(first_piece + asked_piece + lane, pieces - 1);
          copy_16(shared_address(ring + (stage * outputs + o) * 32), from[o].pieces + at, true);
          scale[stage][o] = from[o].scale_of(at);
        }
        asked_piece += 32;
        if (asked_piece >= each) asked_piece = 0, asked_unit += stride;
      }
      end_copy_group();
    };
    ask(0, 0);  // on its way while x is brought
    if (row > begin) __syncthreads();
    products.bring(x, row, rows, thread);
#pragma unroll
    for (int s = 1; s < stages; ++s) ask(s, s);
    __syncthreads();

    products.clear();
    int buffer = 0;
    for (int base = 0; base < steps; base += stages) {
#pragma unroll
      for (int s = 0; s < stages; ++s) {
        if (base + s >= steps) break;
        wait_for_copy_groups<stages - 1>();
        const uint4 weights[] = {ring[s * outputs * 32], ring[(s * outputs + 1) * 32]};
        products.step(weights, scale[s], first_piece + piece + lane);
        ask(s, base + s + stages);
        piece += 32;
        if (piece < each) continue;
          // The unit's last piece.
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          float value[outputs];
#pragma unroll
          for (int o = 0; o < outputs; ++o)
            value[o] = warp_sum(lane % 4 == lane / 8 ? products.sum(r, o) : 0.0f);
          if (splits == 1) {
            if (lane == 0 && r < rows) columns.store(unit, row + r, value);
          } else if (lane == 0) {
#pragma unroll
            for (int o = 0; o < outputs; ++o) sums[buffer][warp][r][o] = value[o];
          }
        }
        if (splits > 1) {
          __syncthreads();
          const int r = thread % Rows, of = thread / Rows;  // a unit of the block
          if (of < gemv_warps / splits && r < rows) {
            float value[outputs] = {};
            for (int i = 0; i < splits; ++i)
#pragma unroll
              for (int o = 0; o < outputs; ++o) value[o] += sums[buffer][of * splits + i][r][o];
            columns.store(unit - warp / splits + of, row + r, value);
          }
          buffer ^= 1;  // the barrier of the next unit comes before this one is written again
        }
        products.clear();
        piece = 0, unit += stride;
      }
    }
  }
}

/// Queues the products where rows are few and these operands allow; false if not. Rows of a group share a
/// read of its weights four at a time; tiles have 64.
template <class T, class XView, class WView, class Second = gemv_alone>
bool launch_gemv(const exec::cuda& p, std::string_view where, const gemm_problem<T, XView, WView>& problem,
                 const Second& second = {}) {
  const std::int64_t rows = problem.y.extent[0], inner = problem.x.extent[1],
                     most = problem.offsets ? std::max<std::int64_t>(16, 4 * problem.groups) : 16;
  if (rows > most || rows == 0 || inner == 0 || !loadable_16(problem.x) || !loadable_16(problem.weight))
    return false;
  std::int64_t results = problem.y.extent[1];
  if constexpr (Second::gated) results *= 2;
  if constexpr (Second::beside) results += second.y.extent[1];
  if constexpr (Second::gated || Second::beside)
    if (!loadable_16(second.weight)) return false;
  const auto run = [&]<int Rows>(std::integral_constant<int, Rows>) {
    constexpr int outputs = gemv_outputs, at_once = gemv_warps * gemv_stages * outputs * 512;
    using W = typename gemv_columns<T, XView, WView, Second>::W;
    const std::size_t bytes = static_cast<std::size_t>(Rows * inner) * sizeof(bf16) + at_once;
    if (bytes + 4096 > p.device().shared_memory_per_block) return false;
    const bool by_group = problem.offsets && rows > problem.groups;
    const std::int64_t slots = !problem.offsets ? ceil_div(rows, Rows) : by_group ? problem.groups : rows;
    const std::int64_t groups = problem.offsets ? 1 : problem.groups, units = ceil_div(results, outputs),
                       multiprocessors = p.device().multiprocessors;
    // Few columns are split, so that every multiprocessor has some.
    int splits = 1;
    const auto blocks = [&] { return ceil_div(units * splits, gemv_warps); };
    while (splits < gemv_warps && blocks() * slots * groups < multiprocessors * 3 / 2 &&
           inner / W::count > 32 * splits)
      splits *= 2;
    // Blocks that are there from the start go through as many columns each.
    const std::int64_t most_blocks = std::max<std::int64_t>(
        1, multiprocessors * gemv_blocks<Rows, packed_storage<WView>> / (slots * groups));
    const std::int64_t rounds = ceil_div(blocks(), most_blocks);
    p.launch(where, gemv_kernel<T, XView, WView, Rows, Second>,
             dim3(static_cast<unsigned>(ceil_div(blocks(), rounds)), static_cast<unsigned>(slots),
                  static_cast<unsigned>(groups)),
             32 * gemv_warps, bytes, problem, second, by_group, splits);
    return true;
  };
  // With many groups their rows rarely meet.
  if (rows == 1 || (problem.offsets && rows <= problem.groups / 8))
    return launch_gemv_mxfp4(p, where, problem, second) || run(std::integral_constant<int, 1>{});
  return run(std::integral_constant<int, 4>{});
}

}  // namespace dsv4::detail
