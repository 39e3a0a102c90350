// SPDX-License-Identifier: Apache-2.0
/// Matrix products on Hopper's matrix units: bf16, or what is decoded to bf16 on the way; many at once.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemm_tiles_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tile_loader_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace dsv4::detail {

inline constexpr int gemm_columns_sm90 = 256, gemm_stages_sm90 = 4;

struct alignas(1024) gemm_memory_sm90 {
  std::uint8_t x[gemm_stages_sm90][gemm_rows_sm90 * 128];
  std::uint8_t weight[gemm_stages_sm90][gemm_columns_sm90 * 128];
  phase_barrier full[gemm_stages_sm90], empty[gemm_stages_sm90];
  int first_tile[most_gemm_groups + 1];
};

/// How many warpgroups bring tiles: one copies as fast as the matrix units multiply, decoding takes two.
template <class... Views>
inline constexpr int gemm_producers_sm90 = (... || requires { typename Views::format; }) ? 2 : 1;

/// As many blocks as multiprocessors, each with every gridDim.x-th tile. Two warpgroups multiply, 64 rows
/// each; the others bring tiles.
template <class T, class XView, class WView, bool Swapped>
__global__ void __launch_bounds__(256 + 128 * gemm_producers_sm90<XView, WView>, 1)
    gemm_sm90_kernel(gemm_problem<T, XView, WView, Swapped> p) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  constexpr int producers = 128 * gemm_producers_sm90<XView, WView>;
  extern __shared__ __align__(1024) unsigned char raw[];
  gemm_memory_sm90& m =
      *reinterpret_cast<gemm_memory_sm90*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < gemm_stages_sm90; ++s) {
      m.full[s].init(2 * producers);  // copies and stores of every producing thread
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  using tile_order = gemm_tile_order<gemm_columns_sm90, gemm_problem<T, XView, WView, Swapped>>;
  if (thread < 32) tile_order::sum_up(p, m.first_tile);
  __syncthreads();
  const tile_order tiles(p, m.first_tile);
  const int count = tiles.count();
  const int inner = static_cast<int>(p.x.extent[1]), steps = (inner + 63) / 64;

  int step = 0;  // counts through all tiles
  if (group >= 2) {
    give_registers<producers == 128 ? 152 : 88>();
    const int own = thread - 256;
    for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x)) {
      const auto at = tiles[tile];
      auto x = p.x;
      if constexpr (requires { x.stride; }) x.data += at.group * p.x_batch;
      const auto weight = p.weight_of(at.group);
      using W = std::remove_const_t<decltype(weight)>;
      // The weight's tiles are (columns of y, inner), side by side, or (inner, columns of y), one below
      // another.
      using right_loader = std::conditional_t<Swapped, tile_loader<W, 64, gemm_columns_sm90, true, producers>,
                                              tile_loader<W, gemm_columns_sm90, 64, false, producers>>;
      tile_loader<XView, gemm_rows_sm90, 64, false, producers> left(x, at.row, at.rows, 0, own);
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

  take_registers<producers == 128 ? 176 : 168>();
  const int warp = thread % 128 / 32;
  for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x)) {
    const auto at = tiles[tile];
    // Where a block has 512 threads, no single product may have more than 128 registers.
    constexpr int parts = producers == 128 ? 1 : 2, columns = gemm_columns_sm90 / parts;
    float sums[parts][128 / parts];
    for (int i = 0; i < steps; ++i, ++step) {
      const int stage = step % gemm_stages_sm90, round = step / gemm_stages_sm90;
      m.full[stage].wait(round & 1);
      fence_async_shared();
      const std::uint32_t left = shared_address(m.x[stage]) + 64 * 128 * group,
                          right = shared_address(m.weight[stage]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int part = 0; part < parts; ++part)
          wgmma<columns, Swapped>::run(sums[part], tile_descriptor(left + 32 * k, 1024, 0),
                                       tile_descriptor(right + columns * (Swapped ? 64 * 2 : 128) * part +
                                                           (Swapped ? 16 * 128 : 32) * k,
                                                       1024, Swapped ? 64 * 128 : 0),
                                       i > 0 || k > 0);
      wgmma_commit();
      // The step before has been read once this one alone is under way.
      wgmma_wait<1>();
      if (i > 0) m.empty[(step - 1) % gemm_stages_sm90].arrive();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < parts; ++part) keep(sums[part]);
    m.empty[(step - 1) % gemm_stages_sm90].arrive();
    store_sums<gemm_columns_sm90>(p, at.row + 64 * group + 16 * warp + lane / 4, at.row + at.rows,
                                  at.column + 2 * (lane % 4), p.y.data + at.group * p.y_batch,
                                  reinterpret_cast<float(&)[128]>(sums));
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
  p.launch(where, gemm_sm90_kernel<T, XView, WView, Swapped>, gemm_grid_sm90<gemm_columns_sm90>(p, problem),
           256 + 128 * gemm_producers_sm90<XView, WView>, sizeof(gemm_memory_sm90) + 1024, problem);
  return true;
}

}  // namespace dsv4::detail
