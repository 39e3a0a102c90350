// SPDX-License-Identifier: Apache-2.0
/// Gradients of weights on Hopper's matrix units: bf16, sums over the rows of each group.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tile_loader_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <cstdint>
#include <limits>
#include <string_view>

namespace dsv4::detail {

inline constexpr int dweight_rows_sm90 = 128, dweight_columns_sm90 = 256;
/// Rows of dy and x per step: an expert has few, so that steps are short, and many are under way.
inline constexpr int dweight_depth_sm90 = 32, dweight_stages_sm90 = 6;

/// dweight_g += dy_g^T x_g. `offsets` says which rows of dy and x are g's; null: all, of the only group.
template <class XView>
struct dweight_problem {
  matrix_view<const bf16, space::device> dy;
  XView x;
  const std::int64_t* offsets;
  tensor_view<bf16, space::device> dweight;

  __device__ std::int64_t begin(std::int64_t g) const { return offsets ? offsets[g] : 0; }
  __device__ std::int64_t rows(std::int64_t g) const {
    return offsets ? offsets[g + 1] - offsets[g] : dy.extent[0];
  }
};

struct alignas(1024) dweight_memory_sm90 {
  std::uint8_t dy[dweight_stages_sm90][dweight_depth_sm90 * dweight_rows_sm90 * 2];
  std::uint8_t x[dweight_stages_sm90][dweight_depth_sm90 * dweight_columns_sm90 * 2];
  std::uint8_t old[8][4][16 * 128];  ///< dweight as it was: each warp's 16 rows, 64 columns after 64
  phase_barrier full[dweight_stages_sm90], empty[dweight_stages_sm90];
};

/// As many blocks as multiprocessors, each with every gridDim.x-th tile of 128 x 256 of all groups. Both
/// operands lie with the axis that is summed over as the long one. Two warpgroups multiply, 64 rows of
/// dweight each; the third brings tiles. Most of the time goes into reading and writing dweight: every warp
/// asks for its part of the next tile as soon as it has written the same part of this one.
template <class XView>
__global__ void __launch_bounds__(384, 1) dweight_sm90_kernel(dweight_problem<XView> p) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  constexpr int depth = dweight_depth_sm90, stages = dweight_stages_sm90;
  extern __shared__ __align__(1024) unsigned char raw[];
  dweight_memory_sm90& m =
      *reinterpret_cast<dweight_memory_sm90*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < stages; ++s) {
      m.full[s].init(256);  // copies and stores of every producing thread
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const std::int64_t rows = p.dweight.extent[1], columns = p.dweight.extent[2];
  const int row_tiles = static_cast<int>((rows + dweight_rows_sm90 - 1) / dweight_rows_sm90),
            column_tiles = static_cast<int>((columns + dweight_columns_sm90 - 1) / dweight_columns_sm90),
            per_group = row_tiles * column_tiles, tiles = per_group * static_cast<int>(p.dweight.extent[0]),
            step_by = static_cast<int>(gridDim.x);
  // The first of this block's tiles from `tile` on whose group has rows.
  const auto seek = [&](int tile) {
    while (tile < tiles && p.rows(tile / per_group) == 0) tile += step_by;
    return tile;
  };
  const auto row_of = [&](int tile) { return tile % per_group / column_tiles * dweight_rows_sm90; };
  const auto column_of = [&](int tile) { return tile % column_tiles * dweight_columns_sm90; };

  int step = 0;  // counts through all tiles
  if (group == 2) {
    give_registers<104>();
    const int own = thread - 256;
    for (int tile = seek(static_cast<int>(blockIdx.x)); tile < tiles; tile = seek(tile + step_by)) {
      const std::int64_t g = tile / per_group, begin = p.begin(g), count = p.rows(g);
      tile_loader<matrix_view<const bf16, space::device>, depth, dweight_rows_sm90, true> left(
          p.dy, begin, count, row_of(tile), own);
      tile_loader<XView, depth, dweight_columns_sm90, true> right(p.x, begin, count, column_of(tile), own);
      const int steps = static_cast<int>((count + depth - 1) / depth);
      for (int i = 0; i < steps; ++i, ++step) {
        const int stage = step % stages, round = step / stages;
        if (round > 0) m.empty[stage].wait((round - 1) & 1);
        left.next(i + 1 == steps, shared_address(m.dy[stage]));
        right.next(i + 1 == steps, shared_address(m.x[stage]));
        m.full[stage].arrive_after_copies();
        fence_async_shared();
        m.full[stage].arrive();
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<200>();
  const int warp = thread % 128 / 32;
  std::uint8_t* const old = m.old[4 * group + warp][0];
  // This lane's 16 bytes `i` of the warp's 64 columns `part`, and where they are in dweight; null if nowhere.
  const auto piece = [&](int part, int i) {
    return old + part * 2048 + tile_offset(lane / 8 + 4 * i, lane % 8);
  };
  const auto place = [&](int tile, int part, int i) -> bf16* {
    const int r = row_of(tile) + 64 * group + 16 * warp + lane / 8 + 4 * i,
              c = column_of(tile) + 64 * part + 8 * (lane % 8);
    return r < rows && c < columns
               ? p.dweight.data + tile / per_group * p.dweight.stride[0] + r * p.dweight.stride[1] + c
               : nullptr;
  };
  const auto bring = [&](int tile, int part) {
    if (tile < tiles) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (const bf16* from = place(tile, part, i)) copy_16(shared_address(piece(part, i)), from, true);
    }
    end_copy_group();
  };
  int tile = seek(static_cast<int>(blockIdx.x));
#pragma unroll
  for (int part = 0; part < 4; ++part) bring(tile, part);
  while (tile < tiles) {
    float sums[128];
    const int steps = static_cast<int>((p.rows(tile / per_group) + depth - 1) / depth);
    for (int i = 0; i < steps; ++i, ++step) {
      const int stage = step % stages, round = step / stages;
      m.full[stage].wait(round & 1);
      fence_async_shared();
      const std::uint32_t left = shared_address(m.dy[stage]) + depth * 128 * group,
                          right = shared_address(m.x[stage]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < depth / 16; ++k)
        wgmma<256, 1, 1>::run(sums, tile_descriptor(left + 16 * 128 * k, 1024, 0),
                              tile_descriptor(right + 16 * 128 * k, 1024, depth * 128), i > 0 || k > 0);
      wgmma_commit();
      // The step before has been read once this one alone is under way.
      wgmma_wait<1>();
      if (i > 0) m.empty[(step - 1) % stages].arrive();
    }
    wgmma_wait<0>();
    keep(sums);
    m.empty[(step - 1) % stages].arrive();
    const int following = seek(tile + step_by);
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      wait_for_copy_groups<3>();
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          auto* const at = reinterpret_cast<__nv_bfloat162*>(
              old + part * 2048 + tile_offset(lane / 4 + 8 * h, j) + 4 * (lane % 4));
          const float2 was = __bfloat1622float2(*at);
          const int s = 4 * (8 * part + j) + 2 * h;
          *at = __floats2bfloat162_rn(was.x + sums[s], was.y + sums[s + 1]);
        }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (bf16* to = place(tile, part, i))
          *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(piece(part, i));
      bring(following, part);  // every lane overwrites what it has just read itself
    }
    tile = following;
  }
  wait_for_copies();
#endif
}

/// Queues the sums where this device and these operands allow; false if not.
template <class XView>
bool launch_dweight_sm90(const exec::cuda& p, std::string_view where, const dweight_problem<XView>& problem) {
  const auto& d = problem.dweight;
  const std::int64_t tiles =
      d.extent[0] * ceil_div(d.extent[1], dweight_rows_sm90) * ceil_div(d.extent[2], dweight_columns_sm90);
  if (!loadable_16(problem.dy) || !loadable_16(problem.x) || !loadable_16(d) ||
      tiles + p.device().multiprocessors > std::numeric_limits<int>::max() ||
      !has_sm90a_code(p, dweight_sm90_kernel<XView>))
    return false;
  p.launch(where, dweight_sm90_kernel<XView>,
           dim3(static_cast<unsigned>(std::min<std::int64_t>(tiles, p.device().multiprocessors))), 384,
           sizeof(dweight_memory_sm90) + 1024, problem);
  return true;
}

}  // namespace dsv4::detail
