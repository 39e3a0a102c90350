// SPDX-License-Identifier: Apache-2.0
/// Matrix products on Hopper's matrix units: bf16, or what is decoded to bf16 on the way; many at once.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tile_loader_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace dsv4::detail {

inline constexpr int gemm_rows_sm90 = 128, gemm_columns_sm90 = 256, gemm_stages_sm90 = 4;
inline constexpr int most_gemm_groups = 1024;

struct alignas(1024) gemm_memory_sm90 {
  std::uint8_t x[gemm_stages_sm90][gemm_rows_sm90 * 128];
  std::uint8_t weight[gemm_stages_sm90][gemm_columns_sm90 * 128];
  phase_barrier full[gemm_stages_sm90], empty[gemm_stages_sm90];
  int first_tile[most_gemm_groups + 1];  ///< of the rows' tiles of each group
};

/// Whether elements of y can be accessed two at a time.
template <class T>
__host__ __device__ bool in_pairs(const matrix_view<T, space::device>& y, std::int64_t batch) {
  return y.extent[1] % 2 == 0 && y.stride[0] % 2 == 0 && batch % 2 == 0;
}

/// A thread's part of a tile of y, from row `row` and column `column` on: y = sums, or y += sums.
template <class T, class Problem>
__device__ __forceinline__ void store_sums(const Problem& p, std::int64_t row, std::int64_t rows, int column,
                                           T* y, float (&sums)[128]) {
  const int columns = static_cast<int>(p.y.extent[1]);
  if (in_pairs(p.y, p.y_batch) && column - column % 8 + gemm_columns_sm90 <= columns) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + 8 * h >= rows) continue;
      auto* const to = reinterpret_cast<pack<T, 2>*>(y + (row + 8 * h) * p.y.stride[0] + column);
      if (p.add) {
#pragma unroll
        for (int first = 0; first < 32; first += 16) {  // as many loads under way as registers allow
          pack<T, 2> was[16];
#pragma unroll
          for (int j = 0; j < 16; ++j) was[j] = to[4 * (first + j)];
#pragma unroll
          for (int j = 0; j < 16; ++j) {
            sums[4 * (first + j) + 2 * h] += widened<float>(was[j].value[0]);
            sums[4 * (first + j) + 2 * h + 1] += widened<float>(was[j].value[1]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 32; ++j)
        to[4 * j] = {{narrowed<T>(sums[4 * j + 2 * h]), narrowed<T>(sums[4 * j + 2 * h + 1])}};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 128; ++i) {
    const std::int64_t r = row + i / 2 % 2 * 8;
    const int c = column + i / 4 * 8 + i % 2;
    if (r >= rows || c >= columns) continue;
    T& to = y[r * p.y.stride[0] + c];
    to = narrowed<T>((p.add ? widened<float>(to) : 0.0f) + sums[i]);
  }
}

/// As many blocks as multiprocessors, each with every gridDim.x-th tile of 128 x 256. Two warpgroups
/// multiply, 64 rows each; the third brings tiles.
template <class T, class XView, class WView, bool Swapped>
__global__ void __launch_bounds__(384, 1) gemm_sm90_kernel(gemm_problem<T, XView, WView, Swapped> p) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  gemm_memory_sm90& m =
      *reinterpret_cast<gemm_memory_sm90*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < gemm_stages_sm90; ++s) {
      m.full[s].init(256);  // copies and stores of every producing thread
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  // How many tiles of rows lie before each group's: sums by the first warp.
  if (thread < 32) {
    int before = 0;
    for (int base = 0; base < p.groups; base += 32) {
      const int g = base + lane;
      const std::int64_t rows = g >= p.groups ? 0
                                : p.offsets   ? p.offsets[g + 1] - p.offsets[g]
                                              : p.y.extent[0];
      const int own = static_cast<int>((rows + gemm_rows_sm90 - 1) / gemm_rows_sm90);
      int through = own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, through, step);
        if (lane >= step) through += other;
      }
      if (g < p.groups) m.first_tile[g + 1] = before + through;
      before += __shfl_sync(0xffffffffu, through, 31);
    }
    if (lane == 0) m.first_tile[0] = 0;
  }
  __syncthreads();
  const int column_tiles = static_cast<int>((p.y.extent[1] + gemm_columns_sm90 - 1) / gemm_columns_sm90);
  const int tiles = m.first_tile[p.groups] * column_tiles;
  const int inner = static_cast<int>(p.x.extent[1]), steps = (inner + 63) / 64;

  struct place {
    int g;
    std::int64_t row, rows;  // rows left from `row` on
    int column;
  };
  // Tiles of one group's rows follow one another column by column, so that these rows stay in the L2 cache.
  const auto locate = [&](int tile) {
    const int row_tile = tile / column_tiles;
    int low = 0, high = p.groups;  // first_tile[low] <= row_tile < first_tile[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (m.first_tile[middle] <= row_tile ? low : high) = middle;
    }
    const std::int64_t begin = p.offsets ? p.offsets[low] : 0,
                       end = p.offsets ? p.offsets[low + 1] : p.y.extent[0];
    const std::int64_t row = begin + std::int64_t{row_tile - m.first_tile[low]} * gemm_rows_sm90;
    return place{low, row, end - row, tile % column_tiles * gemm_columns_sm90};
  };

  int step = 0;  // counts through all tiles
  if (group == 2) {
    give_registers<152>();
    const int own = thread - 256;
    for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
      const place at = locate(tile);
      auto x = p.x;
      if constexpr (requires { x.stride; }) x.data += at.g * p.x_batch;
      const auto weight = p.weight_of(at.g);
      using W = std::remove_const_t<decltype(weight)>;
      // The weight's tiles are (columns of y, inner), side by side, or (inner, columns of y), one below
      // another.
      using right_loader = std::conditional_t<Swapped, tile_loader<W, 64, gemm_columns_sm90, true>,
                                              tile_loader<W, gemm_columns_sm90, 64, false>>;
      tile_loader<XView, gemm_rows_sm90, 64, false> left(x, at.row, at.rows, 0, own);
      right_loader right(weight, Swapped ? 0 : at.column,
                         Swapped ? weight.extent[0] : weight.extent[0] - at.column, Swapped ? at.column : 0,
                         own);
      for (int i = 0; i < steps; ++i, ++step) {
        const int stage = step % gemm_stages_sm90, round = step / gemm_stages_sm90;
        if (round > 0) m.empty[stage].wait((round - 1) & 1);
        left.next(i + 1 == steps, shared_address(m.x[stage]));
        right.next(i + 1 == steps, shared_address(m.weight[stage]));
        m.full[stage].arrive_after_copies();
        fence_async_shared();
        m.full[stage].arrive();
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<176>();
  const int warp = thread % 128 / 32;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const place at = locate(tile);
    float sums[128];
    for (int i = 0; i < steps; ++i, ++step) {
      const int stage = step % gemm_stages_sm90, round = step / gemm_stages_sm90;
      m.full[stage].wait(round & 1);
      fence_async_shared();
      const std::uint32_t left = shared_address(m.x[stage]) + 64 * 128 * group,
                          right = shared_address(m.weight[stage]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma<256, Swapped>::run(
            sums, tile_descriptor(left + 32 * k, 1024, 0),
            tile_descriptor(right + (Swapped ? 16 * 128 : 32) * k, 1024, Swapped ? 64 * 128 : 0),
            i > 0 || k > 0);
      wgmma_commit();
      // The step before has been read once this one alone is under way.
      wgmma_wait<1>();
      if (i > 0) m.empty[(step - 1) % gemm_stages_sm90].arrive();
    }
    wgmma_wait<0>();
    keep(sums);
    m.empty[(step - 1) % gemm_stages_sm90].arrive();
    store_sums(p, at.row + 64 * group + 16 * warp + lane / 4, at.row + at.rows, at.column + 2 * (lane % 4),
               p.y.data + at.g * p.y_batch, sums);
  }
#endif
}

/// Queues the products where this device and these operands allow; false if not.
template <class T, class XView, class WView, bool Swapped>
bool launch_gemm_sm90(const exec::cuda& p, std::string_view where,
                      const gemm_problem<T, XView, WView, Swapped>& problem) {
  if (!loadable_16(problem.x) || !loadable_16(problem.weight) || problem.groups > most_gemm_groups ||
      reinterpret_cast<std::uintptr_t>(problem.y.data) % (2 * sizeof(T)) != 0 || problem.x.extent[1] == 0 ||
      !has_sm90a_code(p, gemm_sm90_kernel<T, XView, WView, Swapped>))
    return false;
  const std::int64_t row_tiles =
      ceil_div(problem.y.extent[0], gemm_rows_sm90) + (problem.offsets ? problem.groups : 0);
  const std::int64_t most =
      row_tiles * ceil_div(problem.y.extent[1], gemm_columns_sm90) * (problem.offsets ? 1 : problem.groups);
  p.launch(where, gemm_sm90_kernel<T, XView, WView, Swapped>,
           dim3(static_cast<unsigned>(std::min<std::int64_t>(most, p.device().multiprocessors))), 384,
           sizeof(gemm_memory_sm90) + 1024, problem);
  return true;
}

}  // namespace dsv4::detail
