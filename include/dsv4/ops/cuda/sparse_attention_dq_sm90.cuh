// SPDX-License-Identifier: Apache-2.0
/// The gradient of sparse attention's queries on Hopper's matrix units: bf16, heads of 512 channels.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/sparse_attention_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>
#include <dsv4/ops/sparse_attention.hpp>

#include <cstdint>

namespace dsv4::detail {

using bf16_attention = sparse_attention<bf16, space::device>;

struct alignas(1024) attention_dq_memory {
  std::uint8_t q[64 * 1024], d[64 * 1024];  // d: the gradient of the output
  std::uint8_t keys[2][32 * 1024];          // tiles of 32
  std::uint8_t ds[2][8 * 1024];
  float dp[64][33];
  std::uint16_t valid[2][2];
  phase_barrier full[2], empty[2];
};

/// One block: query blockIdx.x / head groups, 64 heads. One warpgroup makes scores, the other the products
/// with the upstream gradient; then both sum half of the channels of dq.
template <class L>
__global__ void __launch_bounds__(384, 1)
    attention_dq_sm90_kernel(bf16_attention::inputs in, matrix_view<L, space::device> lse,
                             tensor_view<const bf16, space::device> do_, const float* delta,
                             tensor_view<bf16, space::device> dq) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  attention_dq_memory& m =
      *reinterpret_cast<attention_dq_memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  const int head_groups = static_cast<int>(in.q.extent[1] / 64);
  const std::int64_t t = blockIdx.x / head_groups, first_head = std::int64_t{blockIdx.x % head_groups} * 64;
  const attention_keys keys(in, t);
  const int tiles = (keys.count + 31) / 32;
  if (thread == 0) {
    for (int s = 0; s < 2; ++s) {
      m.full[s].init(128 + 4);
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (group == 2) {
    give_registers<40>();
    const int warp = thread / 32 - 8;
    for (int i = 0; i < tiles; ++i) {
      const int stage = i % 2;
      if (i >= 2) m.empty[stage].wait((i / 2 - 1) & 1);
      // Lane l knows row 8 warp + l.
      const bf16* own = lane < 8 ? keys.row(i * 32 + 8 * warp + lane) : nullptr;
      const unsigned ballot = __ballot_sync(0xffffffffu, own != nullptr);
      const std::uint32_t tile = shared_address(m.keys[stage]);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const auto row = reinterpret_cast<const char*>(
            __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(own), r));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = lane + 32 * half;
          copy_16(tile + column / 8 * 4096 + tile_offset(8 * warp + r, column % 8),
                  (row ? row : reinterpret_cast<const char*>(keys.local)) + 16 * column, row != nullptr);
        }
      }
      m.full[stage].arrive_after_copies();
      if (lane == 0) {
        reinterpret_cast<std::uint8_t*>(m.valid[stage])[warp] = static_cast<std::uint8_t>(ballot);
        m.full[stage].arrive();
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<232>();
  const int own = thread % 128, warp = own / 32, row = 16 * warp + lane / 4;  // and row + 8
#pragma unroll 8
  for (int i = 0; i < 16; ++i) {
    const int at = thread + 256 * i, r = at / 64, column = at % 64;
    const std::uint32_t to = column / 8 * 8192 + tile_offset(r, column % 8);
    copy_16(shared_address(m.q) + to, &in.q(t, first_head + r, 8 * column), true);
    copy_16(shared_address(m.d) + to, &do_(t, first_head + r, 8 * column), true);
  }
  wait_for_copies();
  fence_async_shared();
  sync_threads(1, 256);
  constexpr float log2e = 1.4426950408889634f;
  const float scale = static_cast<float>(in.scale) * log2e;
  float shift[2], mean[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    shift[h] = static_cast<float>(lse(t, first_head + row + 8 * h)) * log2e;
    mean[h] = delta[t * in.q.extent[1] + first_head + row + 8 * h];
  }
  float sums[128], products[16];
#pragma unroll
  for (int i = 0; i < 128; ++i) sums[i] = 0;
  const std::uint32_t left = shared_address(group == 0 ? m.q : m.d);
  const auto multiply = [&](int stage) {
    const std::uint32_t tile = shared_address(m.keys[stage]);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 32; ++c)
      wgmma<32, 0>::run(products, tile_descriptor(left + c / 4 * 8192 + c % 4 * 32, 1024, 0),
                        tile_descriptor(tile + c / 4 * 4096 + c % 4 * 32, 1024, 0), c > 0);
    wgmma_commit();
  };
  if (tiles > 0) {
    m.full[0].wait(0);
    fence_async_shared();
    multiply(0);
  }
  for (int i = 0; i < tiles; ++i) {
    const int stage = i % 2;
    wgmma_wait<0>();
    keep(products);
    keep(sums);
    if (group == 1) {
#pragma unroll
      for (int j = 0; j < 16; ++j)
        m.dp[row + 8 * (j / 2 % 2)][8 * (j / 4) + 2 * (lane % 4) + j % 2] = products[j];
    }
    sync_threads(1, 256);
    if (group == 0) {
      const unsigned valid = m.valid[stage][0] | static_cast<unsigned>(m.valid[stage][1]) << 16;
#pragma unroll
      for (int j = 0; j < 16; j += 2) {
        const int h = j / 2 % 2, key = 8 * (j / 4) + 2 * (lane % 4);
        float ds[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float p = valid >> (key + k) & 1 ? exp2_fast(products[j + k] * scale - shift[h]) : 0.0f;
          ds[k] = p * (m.dp[row + 8 * h][key + k] - mean[h]);
        }
        *reinterpret_cast<__nv_bfloat162*>(m.ds[stage] + tile_offset(row + 8 * h, key / 8) + key % 8 * 2) =
            __floats2bfloat162_rn(ds[0], ds[1]);
      }
      fence_async_shared();
    }
    sync_threads(2, 256);
    {
      const std::uint32_t weights = shared_address(m.ds[stage]),
                          values = shared_address(m.keys[stage]) + 4 * 4096 * group;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 2; ++k)  // 16 keys each
        wgmma<256, 1>::run(sums, tile_descriptor(weights + 32 * k, 1024, 0),
                           tile_descriptor(values + 16 * 128 * k, 1024, 4096), true);
      wgmma_commit();
    }
    if (i + 1 < tiles) {
      m.full[1 - stage].wait((i + 1) / 2 & 1);
      fence_async_shared();
      multiply(1 - stage);
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    m.empty[stage].arrive();
  }
  wgmma_wait<0>();
  keep(sums);
  // Through shared memory, where the queries were.
  sync_threads(1, 256);
  constexpr int pitch = 512 + 16;
  std::uint8_t* const out = m.q + group * 64 * pitch;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 32; ++j)
      *reinterpret_cast<__nv_bfloat162*>(out + (row + 8 * h) * pitch + 16 * j + 4 * (lane % 4)) =
          __floats2bfloat162_rn(sums[4 * j + 2 * h] * static_cast<float>(in.scale),
                                sums[4 * j + 2 * h + 1] * static_cast<float>(in.scale));
  sync_threads(6 + group, 128);
#pragma unroll 4
  for (int i = 0; i < 16; ++i) {
    const int at = own + 128 * i, r = at / 32, column = at % 32;
    *reinterpret_cast<uint4*>(&dq(t, first_head + r, 256 * group + 8 * column)) =
        *reinterpret_cast<const uint4*>(out + r * pitch + 16 * column);
  }
#endif
}

}  // namespace dsv4::detail
