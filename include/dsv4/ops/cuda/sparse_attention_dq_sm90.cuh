// SPDX-License-Identifier: Apache-2.0
/// Gradients of sparse attention by query on Hopper's matrix units: bf16, heads of 512 channels. That of the
/// query alone, or, with atomic sums, those of its keys too.
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
  std::uint8_t q[64 * 1024], d[64 * 1024];       // d: the gradient of the output
  std::uint8_t keys[2][32 * 1024];               // tiles of 32
  std::uint8_t p[2][8 * 1024], ds[2][8 * 1024];  // of two such tiles side by side; ds is scaled
  std::uint16_t valid[2][2];
  phase_barrier full[2], empty[2];                  // of keys
  phase_barrier weights_full[2], weights_empty[2];  // of p and ds
};

/// Float sums of the keys' gradients, (rows, 512) without gaps, which blocks add to; null where not wanted.
struct attention_key_sums {
  float *local, *compressed;

  /// Where what key j of a query gets is added, or null.
  __device__ float* row(const attention_keys& keys, int j) const {
    if (j < keys.near) return local ? local + (keys.first_row + j) * 512 : nullptr;
    const std::int64_t e = compressed ? keys.entry(j) : -1;
    return e < 0 ? nullptr : compressed + e * 512;
  }
};

/// Brings all keys, 32 at a time: warp `warp` of four, eight rows of a tile.
__device__ __forceinline__ void bring_keys(attention_dq_memory& m, const attention_keys& keys, int warp,
                                           int lane) {
  const int tiles = (keys.count + 31) / 32;
  // Lane l knows row 8 warp + l, which is looked up before there is room for it.
  const auto find = [&](int tile) { return lane < 8 ? keys.row(tile * 32 + 8 * warp + lane) : nullptr; };
  const bf16* own = find(0);
  for (int i = 0; i < tiles; ++i) {
    const int stage = i % 2;
    if (i >= 2) m.empty[stage].wait((i / 2 - 1) & 1);
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
    own = find(i + 1);
  }
  wait_for_copies();
}

/// Adds p^T do + ds^T q to the keys' sums, 64 keys and 64 channels at a time: one warpgroup. While the matrix
/// unit makes one piece, the one before is added.
__device__ __forceinline__ void add_to_keys(attention_dq_memory& m, const attention_keys& keys,
                                            const attention_key_sums& to, int warp, int lane) {
  const int row = 16 * warp + lane / 4;  // and row + 8
  const int tiles = (keys.count + 63) / 64;
  const auto make = [&](float(&piece)[32], int buffer, int c) {
    // Computed anew each time: descriptors that are kept would take the registers.
    std::uint32_t p = shared_address(m.p[buffer]), ds = shared_address(m.ds[buffer]),
                  d = shared_address(m.d) + c * 8192, q = shared_address(m.q) + c * 8192;
    asm volatile("" : "+r"(p), "+r"(ds), "+r"(d), "+r"(q));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; ++k) {  // 16 heads each
      const int at = 16 * 128 * (k % 4);
      wgmma<64, 1, 1>::run(piece, tile_descriptor((k < 4 ? p : ds) + at, 1024, 8192),
                           tile_descriptor((k < 4 ? d : q) + at, 1024, 8192), k > 0);
    }
    wgmma_commit();
  };
  float* rows[2];
  const auto add = [&](const float(&piece)[32], int c) {
    // Four lanes have 8 channels of a row, two each. Pairs of lanes change halves, so that each has four next
    // to each other: 16 bytes at once are added faster than 8.
    const bool second = lane & 1;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const float* const a = &piece[4 * j + 2 * r];
        const float x = __shfl_xor_sync(0xffffffffu, second ? a[0] : a[4], 1),
                    y = __shfl_xor_sync(0xffffffffu, second ? a[1] : a[5], 1);
        if (rows[r])
          asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                           rows[r] + 64 * c + 8 * (j + second) + 4 * (lane % 4 / 2)),
                       "f"(second ? x : a[0]), "f"(second ? y : a[1]), "f"(second ? a[4] : x),
                       "f"(second ? a[5] : y)
                       : "memory");
      }
    }
  };
  float pieces[2][32];
  for (int i = 0; i < tiles; ++i) {
    const int buffer = i % 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) rows[r] = to.row(keys, 64 * i + row + 8 * r);
    m.weights_full[buffer].wait(i / 2 & 1);
    make(pieces[0], buffer, 0);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      if (c < 7) {
        make(pieces[(c + 1) % 2], buffer, c + 1);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
        m.weights_empty[buffer].arrive();
      }
      keep(pieces[c % 2]);
      add(pieces[c % 2], c);
    }
  }
}

/// One block: a query, 64 heads, by two warpgroups. One makes scores, the other the products with the
/// upstream gradient; then each makes weights and their gradients for half of a tile's keys, and sums half of
/// the channels of dq. Another brings keys, and with `Keys` one more adds to the gradients of keys.
template <class L, bool Keys>
__global__ void __launch_bounds__(Keys ? 512 : 384, 1)
    attention_dq_sm90_kernel(bf16_attention::inputs in, matrix_view<L, space::device> lse,
                             tensor_view<const bf16, space::device> do_, const float* delta,
                             tensor_view<bf16, space::device> dq, attention_key_sums to) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  attention_dq_memory& m =
      *reinterpret_cast<attention_dq_memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32,
            warp = thread % 128 / 32;
  const int head_groups = static_cast<int>(in.q.extent[1] / 64);
  // The latest queries, which have most keys, come first.
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const std::int64_t t = block / head_groups, first_head = std::int64_t{block % head_groups} * 64;
  const attention_keys keys(in, t);
  const int tiles = (keys.count + 31) / 32;
  if (thread == 0) {
    for (int s = 0; s < 2; ++s) {
      m.full[s].init(128 + 4);
      m.empty[s].init(256);
      m.weights_full[s].init(256);
      m.weights_empty[s].init(128);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (group == 2) {
    give_registers<Keys ? 32 : 40>();
    bring_keys(m, keys, warp, lane);
  } else if (group == 3) {
    if constexpr (Keys) {
      give_registers<112>();
      add_to_keys(m, keys, to, warp, lane);
    }
  } else {
    take_registers<Keys ? 184 : 232>();
    const int row = 16 * warp + lane / 4;  // and row + 8
#pragma unroll 8
    for (int i = 0; i < 16; ++i) {
      const int at = thread + 256 * i, r = at / 64, column = at % 64;
      const std::uint32_t by = column / 8 * 8192 + tile_offset(r, column % 8);
      copy_16(shared_address(m.q) + by, &in.q(t, first_head + r, 8 * column), true);
      copy_16(shared_address(m.d) + by, &do_(t, first_head + r, 8 * column), true);
    }
    wait_for_copies();
    fence_async_shared();
    sync_threads(1, 256);
    constexpr float log2e = 1.4426950408889634f;
    const float scale = static_cast<float>(in.scale);
    float shift[2], mean[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      shift[h] = static_cast<float>(lse(t, first_head + row + 8 * h)) * log2e;
      mean[h] = delta[t * in.q.extent[1] + first_head + row + 8 * h];
    }
    float sums[2][64], products[16];  // each of 128 channels
#pragma unroll
    for (int i = 0; i < 128; ++i) sums[i / 64][i % 64] = 0;
    const auto multiply = [&](int stage) {
      std::uint32_t left = shared_address(group == 0 ? m.q : m.d), tile = shared_address(m.keys[stage]);
      asm volatile("" : "+r"(left), "+r"(tile));
      wgmma_fence();
#pragma unroll
      for (int c = 0; c < 32; ++c)
        wgmma<32, 0>::run(products, tile_descriptor(left + c / 4 * 8192 + c % 4 * 32, 1024, 0),
                          tile_descriptor(tile + c / 4 * 4096 + c % 4 * 32, 1024, 0), c > 0);
      wgmma_commit();
    };
    m.full[0].wait(0);
    fence_async_shared();
    multiply(0);
    for (int i = 0; i < tiles; ++i) {
      const int stage = i % 2, half = i % 2, buffer = i / 2 % 2;
      wgmma_wait<0>();
      keep(products);
      keep(sums[0]);
      keep(sums[1]);
      if (Keys && half == 0 && i >= 4) m.weights_empty[buffer].wait((i / 4 - 1) & 1);
      // The other warpgroup gets the products of half of the keys by the places of two weights and two of
      // their gradients, which the thread that reads them will write.
      std::uint8_t* const p = m.p[buffer] + 4 * (lane % 4);
      std::uint8_t* const ds = m.ds[buffer] + 4 * (lane % 4);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const std::uint32_t at = tile_offset(row + 8 * (j / 2 % 2), 4 * half + 2 * (1 - group) + j / 4);
        *reinterpret_cast<float*>(p + at) = group == 0 ? products[8 + j] : products[j];
        *reinterpret_cast<float*>(ds + at) = group == 0 ? products[9 + j] : products[j + 1];
      }
      sync_threads(2 + warp, 64);
      const unsigned valid = m.valid[stage][group] >> 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const int h = j / 2 % 2;
        const std::uint32_t at = tile_offset(row + 8 * h, 4 * half + 2 * group + j / 4);
        const float others[2] = {*reinterpret_cast<const float*>(p + at),
                                 *reinterpret_cast<const float*>(ds + at)};
        float w[2], dw[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float own = group == 0 ? products[j + k] : products[8 + j + k];
          const float score = group == 0 ? own : others[k], dp = group == 0 ? others[k] : own;
          w[k] = valid >> (8 * (j / 4) + k) & 1 ? exp2_fast(score * (scale * log2e) - shift[h]) : 0.0f;
          dw[k] = w[k] * (dp - mean[h]) * scale;
        }
        if constexpr (Keys) *reinterpret_cast<__nv_bfloat162*>(p + at) = __floats2bfloat162_rn(w[0], w[1]);
        *reinterpret_cast<__nv_bfloat162*>(ds + at) = __floats2bfloat162_rn(dw[0], dw[1]);
      }
      fence_async_shared();
      if (Keys && (half == 1 || i + 1 == tiles)) m.weights_full[buffer].arrive();
      sync_threads(1, 256);
      {
        const std::uint32_t weights = shared_address(m.ds[buffer]) + 64 * half,
                            values = shared_address(m.keys[stage]) + 4 * 4096 * group;
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)  // 16 keys each
          wgmma<128, 1>::run(sums[k / 2], tile_descriptor(weights + 32 * (k % 2), 1024, 0),
                             tile_descriptor(values + k / 2 * 8192 + 16 * 128 * (k % 2), 1024, 4096), true);
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
    keep(sums[0]);
    keep(sums[1]);
    if (!dq.data) return;
    // Through shared memory, where keys were, so that whole lines are written.
    sync_threads(1, 256);
    std::uint8_t* const out = m.keys[group];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < 32; ++j)
        *reinterpret_cast<__nv_bfloat162*>(out + (row + 8 * h) * 512 + (j ^ lane / 4) * 16 + 4 * (lane % 4)) =
            __floats2bfloat162_rn(sums[j / 16][4 * (j % 16) + 2 * h], sums[j / 16][4 * (j % 16) + 2 * h + 1]);
    sync_threads(6 + group, 128);
#pragma unroll 4
    for (int i = 0; i < 16; ++i) {
      const int at = thread % 128 + 128 * i, r = at / 32, column = at % 32;
      *reinterpret_cast<uint4*>(&dq(t, first_head + r, 256 * group + 8 * column)) =
          *reinterpret_cast<const uint4*>(out + r * 512 + (column ^ r % 8) * 16);
    }
  }
#endif
}

}  // namespace dsv4::detail
