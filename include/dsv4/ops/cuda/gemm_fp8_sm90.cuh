// SPDX-License-Identifier: Apache-2.0
/// Products of FP8 inputs with FP8 weights on Hopper's FP8 matrix units; many at once. The matrix
/// unit, which keeps about 14 bits, sums over a block of 128 channels; these sums are scaled and added in
/// float.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/fp8_tiles_sm90.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemm_tiles_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tensor_copy_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <cstdint>
#include <string_view>

namespace dsv4::detail {

/// sums += part x w, with x of either of a thread's rows. The scales' product may leave float's range where
/// the result does not.
template <int N>
__device__ __forceinline__ void add_scaled(float* sums, const float (&part)[N], float x_0, float x_1,
                                           float w) {
  const float scale_0 = x_0 * w, scale_1 = x_1 * w;
  if (__all_sync(0xFFFFFFFFu, is_normal(scale_0) && is_normal(scale_1))) {
    // Not in C++, where the compiler would share the addition with the other branch, for a product more.
#pragma unroll
    for (int i = 0; i < N; ++i)
      asm("fma.rn.f32 %0, %1, %2, %0;" : "+f"(sums[i]) : "f"(part[i]), "f"(i % 4 < 2 ? scale_0 : scale_1));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] += part[i] * (i % 4 < 2 ? x_0 : x_1) * w;
  }
}

/// A warp's 16 rows of a tile of y by way of its `own` shared memory, from where rows are copied while the
/// next tile is at work.
__device__ __forceinline__ void store_rows(const matrix_view<bf16, space::device>& y, std::int64_t row,
                                           std::int64_t rows, int column, bf16* data, std::uint8_t* own,
                                           const float (&sums)[gemm_fp8_shape::columns / 2]) {
  constexpr int columns = gemm_fp8_shape::columns, pitch = gemm_fp8_shape::y_pitch;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint32_t to = shared_address(own) + lane % 16 * pitch + lane / 16 * 16;
  wait_for_stores<0>();
  __syncwarp();
#pragma unroll
  for (int j = 0; j < columns / 8; j += 2) {
    std::uint32_t pair[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) pair[k] = packed_pair<bf16>(sums[4 * j + 2 * k], sums[4 * j + 2 * k + 1]);
    store_blocks<false>(to + 16 * j, pair);
  }
  fence_async_shared();
  __syncwarp();
  const int width = static_cast<int>(max(std::int64_t{0}, min(y.extent[1] - column, std::int64_t{columns})));
  if (lane < 16 && row + lane < rows && width > 0)
    store_bulk(data + (row + lane) * y.stride[0] + column, shared_address(own) + lane * pitch, width * 2);
  end_store_group();
}

/// As many blocks as multiprocessors, each with every gridDim.x-th tile. Two warpgroups multiply, 64 rows
/// each, 128 columns after the other, since sums of all and of a block do not fit in registers; while one
/// scales, the other keeps the matrix units busy. The third brings tiles.
template <class XView, class WView>
__global__ void __launch_bounds__(gemm_fp8_shape::threads, 1)
    gemm_fp8_kernel(gemm_problem<bf16, XView, WView> p) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  using shape = gemm_fp8_shape;
  using memory = gemm_fp8_memory;
  extern __shared__ __align__(1024) unsigned char raw[];
  memory& m = *reinterpret_cast<memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < shape::stages; ++s) {
      m.full[s].init(256);  // copies and stores of every thread of the producer
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  using tile_order = gemm_tile_order<shape::columns, gemm_problem<bf16, XView, WView>>;
  if (thread < 32) tile_order::sum_up(p, m.first_tile);
  __syncthreads();
  const tile_order tiles(p, m.first_tile);
  const int count = tiles.count();
  const int inner = static_cast<int>(p.x.extent[1]), blocks = (inner + gemm_fp8_depth - 1) / gemm_fp8_depth;

  int step = 0;
  if (group == 2) {
    give_registers<shape::producer_registers>();
    const int own = thread % 128;
    for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x)) {
      const auto at = tiles[tile];
      const auto weight = p.weight_of(at.group);
      fp8_tiles right(weight, at.column, own);
      row_copies<gemm_rows_sm90> left(p.x.row(at.row), at.rows, p.x.row_stride, own);
      const e8m0* const scales = p.x.row_scales(at.row + min(std::int64_t{own}, at.rows - 1));
      e8m0 scale = scales[0];
      for (int block = 0; block < blocks; ++block, left.next(), right.next()) {
        const float x_scale = static_cast<float>(scale);
        if (block + 1 < blocks) scale = scales[block + 1];
        for (bool last = false; !last; ++step) {
          const int stage = step % shape::stages, round = step / shape::stages;
          if (round > 0) m.empty[stage].wait((round - 1) & 1);
          left.copy(shared_address(m.x[stage]) + left.place(own),
                    inner - block * gemm_fp8_depth - 16 * (own % 4));
          m.x_scale[stage][own] = x_scale;
          last = right.bring(stage, m);
          if (own == 0) m.last[stage] = last;
          m.full[stage].arrive_after_copies();
          m.full[stage].arrive();
        }
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<shape::consumer_registers>();
  const int warp = thread % 128 / 32, first_row = 64 * group + 16 * warp;
  const bool whole = in_16(p.y, p.y_batch);
  for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x)) {
    const auto at = tiles[tile];
    float sums[shape::columns / 2];
#pragma unroll
    for (int i = 0; i < shape::columns / 2; ++i) sums[i] = 0;
    for (int block = 0; block < blocks; ++step) {
      const int stage = step % shape::stages, round = step / shape::stages;
      m.full[stage].wait(round & 1);
      fence_async_shared();
      const std::uint64_t left = tile_descriptor(shared_address(m.x[stage]) + 64 * gemm_fp8_depth * group,
                                                 1024, 0),
                          right = tile_descriptor(shared_address(m.weight[stage]), 1024, 0);
      const float x_0 = m.x_scale[stage][first_row + lane / 4],
                  x_1 = m.x_scale[stage][first_row + lane / 4 + 8], w_0 = m.weight_scale[stage][0],
                  w_1 = m.weight_scale[stage][1];
      block += m.last[stage];
      constexpr int width = shape::part, parts = shape::columns / width, ahead = 128 / width - 1;
      float part[ahead + 1][width / 2];
#pragma unroll
      for (int i = 0; i < parts + ahead; ++i) {
        if (i < parts) {
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k)  // descriptors count in 16 bytes
            wgmma_e4m3<width>::run(part[i % (ahead + 1)], left + 2 * k,
                                   right + width * gemm_fp8_depth / 16 * i + 2 * k, k > 0);
          wgmma_commit();
        }
        const int done = i - ahead;
        if (done < 0) continue;
        if (i < parts)
          wgmma_wait<ahead>();
        else
          wgmma_wait<0>();
        float(&sum)[width / 2] = part[done % (ahead + 1)];
        keep(sum);
        if (done + 1 == parts) m.empty[stage].arrive();
        add_scaled(sums + width / 2 * done, sum, x_0, x_1, width * done < 128 ? w_0 : w_1);
      }
    }
    bf16* const y = p.y.data + at.group * p.y_batch;
    if (whole)
      store_rows(p.y, at.row + first_row, at.row + at.rows, at.column, y, m.y[thread / 32], sums);
    else
      store_sums<shape::columns>(p, at.row + first_row + lane / 4, at.row + at.rows,
                                 at.column + 2 * (lane % 4), y, sums);
  }
  wait_for_stores<0>();
#endif
}

/// Queues the products where this device and these operands allow; false if not.
template <class XView, class WView>
bool launch_gemm_fp8(const exec::cuda& p, std::string_view where,
                     const gemm_problem<bf16, XView, WView>& problem) {
  using shape = gemm_fp8_shape;
  if (!loadable_16(problem.x) || !loadable_16(problem.weight) || problem.groups > most_gemm_groups ||
      reinterpret_cast<std::uintptr_t>(problem.y.data) % (2 * sizeof(bf16)) != 0 ||
      problem.x.extent[1] == 0 || !has_sm90a_code(p, gemm_fp8_kernel<XView, WView>))
    return false;
  p.launch(where, gemm_fp8_kernel<XView, WView>, gemm_grid_sm90<shape::columns>(p, problem), shape::threads,
           sizeof(gemm_fp8_memory) + 1024, problem);
  return true;
}

}  // namespace dsv4::detail
