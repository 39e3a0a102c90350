// SPDX-License-Identifier: Apache-2.0
/// Sparse attention on Hopper's matrix units: bf16, heads of 512 channels, 64 of them per block.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>
#include <dsv4/ops/sparse_attention.hpp>

#include <cstdint>

namespace dsv4::detail {

/// Shared memory of a block. Tiles of 64 rows of 512 channels are eight panels of 64 channels, 8 KiB each.
struct alignas(1024) attention_memory {
  static constexpr int stages = 2;
  std::uint8_t q[64 * 1024];
  std::uint8_t keys[stages][64 * 1024];
  std::uint8_t p[2][8 * 1024];
  float top[2][64], sum[2][64];    // per warpgroup and head
  std::uint16_t valid[stages][4];  // a bit per key of the tile
  phase_barrier full[stages], empty[stages];
};

/// Parts of the keys of a query that went to different blocks: unnormalised outputs relative to `top`.
struct attention_parts {
  float* o;       // (N, H, parts, 512)
  float* top;     // (N, H, parts), in powers of 2
  float* weight;  // (N, H, parts)
  int count;
  int tiles;  ///< of 64 keys, per part
};

/// Which keys a query sees: its window, then compressed entries.
struct attention_keys {
  const bf16 *local, *compressed;
  std::int64_t local_stride, compressed_stride;
  const std::int32_t* selected;  // of this query; null: all entries in order
  std::int64_t first_row;        ///< of `local`
  int near, count;

  __device__ attention_keys(const sparse_attention<bf16, space::device>::inputs& in, std::int64_t t)
      : local(in.local.data),
        compressed(in.compressed.data),
        local_stride(in.local.stride[0]),
        compressed_stride(in.compressed.stride[0]),
        selected(in.selected.data ? in.selected.data + t * in.selected.stride[0] : nullptr) {
    const std::int64_t position = in.first_position + t;
    const std::int64_t oldest = max(std::int64_t{0}, position - in.window + 1);
    first_row = oldest - in.first_local;
    near = static_cast<int>(position - oldest + 1);
    const std::int64_t far = selected ? in.selected.extent[1] : in.ratio > 0 ? (position + 1) / in.ratio : 0;
    count = near + static_cast<int>(far);
  }
  /// The compressed entry that key j >= near is, or a negative number.
  __device__ std::int64_t entry(int j) const {
    return j >= count ? -1 : selected ? selected[j - near] : j - near;
  }
  /// Key j, or null.
  __device__ const bf16* row(int j) const {
    if (j < near) return local + (first_row + j) * local_stride;
    const std::int64_t e = entry(j);
    return e < 0 ? nullptr : compressed + e * compressed_stride;
  }
};

/// 2^x, to 2 units in the last place.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// One block: query blockIdx.x / head groups, 64 heads, one part of the keys. Two warpgroups multiply: each
/// scores half of a tile's keys, and sums half of the channels over all of them; the third brings keys.
template <class L>
__global__ void __launch_bounds__(384, 1)
    sparse_attention_sm90_kernel(sparse_attention<bf16, space::device>::inputs in,
                                 tensor_view<bf16, space::device> o, matrix_view<L, space::device> lse,
                                 attention_parts parts) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  attention_memory& m =
      *reinterpret_cast<attention_memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  const int head_groups = static_cast<int>(in.q.extent[1] / 64);
  const std::int64_t t = blockIdx.x / head_groups;
  const std::int64_t first_head = std::int64_t{blockIdx.x % head_groups} * 64;
  const attention_keys keys(in, t);
  const int part = static_cast<int>(blockIdx.y), first_tile = part * parts.tiles;
  const int tiles = max(0, min((keys.count + 63) / 64 - first_tile, parts.tiles));
  if (thread == 0) {
    for (int s = 0; s < attention_memory::stages; ++s) {
      m.full[s].init(128 + 4);  // the copies of every producing thread, and the four that say what is valid
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
      // Lane l knows row 16 warp + l; a warp then copies a row at a time, 2 x 512 bytes.
      const bf16* own = lane < 16 ? keys.row((first_tile + i) * 64 + 16 * warp + lane) : nullptr;
      const unsigned ballot = __ballot_sync(0xffffffffu, own != nullptr);
      const std::uint32_t tile = shared_address(m.keys[stage]);
#pragma unroll 4
      for (int r = 0; r < 16; ++r) {
        const auto row = reinterpret_cast<const char*>(
            __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(own), r));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = lane + 32 * half;
          copy_16(tile + column / 8 * 8192 + tile_offset(16 * warp + r, column % 8),
                  (row ? row : reinterpret_cast<const char*>(keys.local)) + 16 * column, row != nullptr);
        }
      }
      m.full[stage].arrive_after_copies();
      if (lane == 0) {
        m.valid[stage][warp] = static_cast<std::uint16_t>(ballot);
        m.full[stage].arrive();
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<232>();
  const int own = thread % 128, warp = own / 32, row = 16 * warp + lane / 4;  // and row + 8
  const std::uint32_t q_tile = shared_address(m.q);
  {
    const bf16* const from = in.q.data + t * in.q.stride[0] + first_head * in.q.stride[1];
#pragma unroll 8
    for (int i = 0; i < 16; ++i) {
      const int at = thread + 256 * i, r = at / 64, column = at % 64;
      copy_16(q_tile + column / 8 * 8192 + tile_offset(r, column % 8), from + r * in.q.stride[1] + 8 * column,
              true);
    }
    wait_for_copies();
    fence_async_shared();
    sync_threads(1, 256);
  }
  constexpr float log2e = 1.4426950408889634f;
  const float scale = static_cast<float>(in.scale) * log2e;
  float sums[128], scores[16], top[2], weight[2];
#pragma unroll
  for (int i = 0; i < 128; ++i) sums[i] = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // The sink is a key without a value; one of the threads that share a row has it, in the first part.
    const float sink = static_cast<float>(in.sinks(first_head + row + 8 * i)) * log2e;
    top[i] = part == 0 ? sink : -infinity<float>;
    weight[i] = part == 0 && group == 0 && lane % 4 == 0 ? 1.0f : 0.0f;
  }

  const auto score = [&](int stage) {  // scores of keys 32 group + ... of the tile, from now on
    const std::uint32_t tile = shared_address(m.keys[stage]) + 32 * 128 * group;
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < 32; ++c) {  // 16 channels each
      const std::uint32_t at = c / 4 * 8192 + c % 4 * 32;
      wgmma<32, 0>::run(scores, tile_descriptor(q_tile + at, 1024, 0), tile_descriptor(tile + at, 1024, 0),
                        c > 0);
    }
    wgmma_commit();
  };
  if (tiles > 0) {
    m.full[0].wait(0);
    fence_async_shared();
    score(0);
  }
  for (int i = 0; i < tiles; ++i) {
    const int stage = i % 2;
    wgmma_wait<0>();
    keep(scores);
    keep(sums);
    const unsigned valid = m.valid[stage][2 * group] | static_cast<unsigned>(m.valid[stage][2 * group + 1])
                                                           << 16;
    float largest[2] = {-infinity<float>, -infinity<float>};
#pragma unroll
    for (int j = 0; j < 16; ++j) {  // key 8 (j / 4) + 2 (lane % 4) + j % 2 of head row + 8 (j / 2 % 2)
      const int key = 8 * (j / 4) + 2 * (lane % 4) + j % 2;
      scores[j] = valid >> key & 1 ? scores[j] * scale : -infinity<float>;
      largest[j / 2 % 2] = fmaxf(largest[j / 2 % 2], scores[j]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffffu, largest[h], 1));
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffffu, largest[h], 2));
      if (lane % 4 == 0) m.top[group][row + 8 * h] = largest[h];
    }
    sync_threads(2 + warp, 64);  // with the other warpgroup's warp of the same heads
    float old[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float now = fmaxf(top[h], fmaxf(largest[h], m.top[1 - group][row + 8 * h]));
      const float base = now == -infinity<float> ? 0.0f : now;
      old[h] = exp2_fast(top[h] - base);
      top[h] = now;
      weight[h] *= old[h];
      largest[h] = base;
    }
#pragma unroll
    for (int j = 0; j < 16; j += 2) {
      const int h = j / 2 % 2;
      const float a = exp2_fast(scores[j] - largest[h]), b = exp2_fast(scores[j + 1] - largest[h]);
      const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
      // The rounded weights are summed: what multiplies the values also divides them.
      weight[h] += __low2float(pair) + __high2float(pair);
      const int column = 32 * group + 8 * (j / 4) + 2 * (lane % 4);
      *reinterpret_cast<__nv_bfloat162*>(m.p[stage] + tile_offset(row + 8 * h, column / 8) + column % 8 * 2) =
          pair;
    }
    if (old[0] != 1.0f || old[1] != 1.0f) {
#pragma unroll
      for (int j = 0; j < 128; ++j) sums[j] *= old[j / 2 % 2];
    }
    fence_async_shared();
    sync_threads(1, 256);
    {
      const std::uint32_t weights = shared_address(m.p[stage]);
      const std::uint32_t values = shared_address(m.keys[stage]) + 4 * 8192 * group;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)  // 16 keys each
        wgmma<256, 1>::run(sums, tile_descriptor(weights + 32 * k, 1024, 0),
                           tile_descriptor(values + 16 * 128 * k, 1024, 8192), true);
      wgmma_commit();
    }
    if (i + 1 < tiles) {
      m.full[1 - stage].wait((i + 1) / 2 & 1);
      fence_async_shared();
      score(1 - stage);
      wgmma_wait<1>();  // the values have been read
    } else {
      wgmma_wait<0>();
    }
    m.empty[stage].arrive();
  }
  wgmma_wait<0>();
  keep(sums);

  // Each warpgroup has seen half of the keys' weights.
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    weight[h] += __shfl_xor_sync(0xffffffffu, weight[h], 1);
    weight[h] += __shfl_xor_sync(0xffffffffu, weight[h], 2);
    if (lane % 4 == 0) m.sum[group][row + 8 * h] = weight[h];
  }
  sync_threads(1, 256);
#pragma unroll
  for (int h = 0; h < 2; ++h) weight[h] = m.sum[0][row + 8 * h] + m.sum[1][row + 8 * h];
  if (parts.count > 1) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t at = ((t * in.q.extent[1] + first_head + row + 8 * h) * parts.count + part);
#pragma unroll
      for (int j = 0; j < 32; ++j)
        *reinterpret_cast<float2*>(parts.o + at * 512 + 256 * group + 8 * j + 2 * (lane % 4)) =
            make_float2(sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]);
      if (group == 0 && lane % 4 == 0) parts.top[at] = top[h], parts.weight[at] = weight[h];
    }
    return;
  }
  constexpr float ln2 = 0.6931471805599453f;
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (lse.data && group == 0 && lane % 4 == 0)
      lse(t, first_head + row + 8 * h) = static_cast<L>(ln2 * (top[h] + log2f(weight[h])));
  // Through shared memory, so that rows are written in whole lines. The keys are no longer needed.
  constexpr int pitch = 512 + 16;
  std::uint8_t* const out = m.keys[group];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float r = 1.0f / weight[h];
#pragma unroll
    for (int j = 0; j < 32; ++j)
      *reinterpret_cast<__nv_bfloat162*>(out + (row + 8 * h) * pitch + 16 * j + 4 * (lane % 4)) =
          __floats2bfloat162_rn(sums[4 * j + 2 * h] * r, sums[4 * j + 2 * h + 1] * r);
  }
  sync_threads(6 + group, 128);
  bf16* const to = o.data + t * o.stride[0] + first_head * o.stride[1] + 256 * group;
#pragma unroll 4
  for (int i = 0; i < 16; ++i) {
    const int at = own + 128 * i, r = at / 32, column = at % 32;
    *reinterpret_cast<uint4*>(to + r * o.stride[1] + 8 * column) =
        *reinterpret_cast<const uint4*>(out + r * pitch + 16 * column);
  }
#endif
}

/// Adds up the parts of every query and head.
template <class L>
__global__ void __launch_bounds__(128)
    sparse_attention_join_kernel(attention_parts parts, tensor_view<bf16, space::device> o,
                                 matrix_view<L, space::device> lse) {
  wait_for_previous_kernels();
  const std::int64_t heads = o.extent[1], t = blockIdx.x / heads, h = blockIdx.x % heads;
  const std::int64_t at = (t * heads + h) * parts.count;
  float top = -infinity<float>;
  for (int i = 0; i < parts.count; ++i) top = fmaxf(top, parts.top[at + i]);
  float weight = 0;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int i = 0; i < parts.count; ++i) {
    if (parts.weight[at + i] == 0.0f) continue;  // no keys
    const float w = exp2_fast(parts.top[at + i] - top);
    weight += w * parts.weight[at + i];
    const float4 v = *reinterpret_cast<const float4*>(parts.o + (at + i) * 512 + 4 * threadIdx.x);
    sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
  }
  if (lse.data && threadIdx.x == 0) lse(t, h) = static_cast<L>(0.6931471805599453f * (top + log2f(weight)));
  const float r = 1.0f / weight;
  bf16* const to = &o(t, h, 4 * threadIdx.x);
  to[0] = narrowed<bf16>(sum.x * r), to[1] = narrowed<bf16>(sum.y * r);
  to[2] = narrowed<bf16>(sum.z * r), to[3] = narrowed<bf16>(sum.w * r);
}

/// Whether this kernel can do it; if so, queues it.
template <class L>
bool launch_sparse_attention_sm90(const exec::cuda& p,
                                  const sparse_attention<bf16, space::device>::inputs& in,
                                  const sparse_attention<bf16, space::device>::outputs& out,
                                  const matrix_view<L, space::device>& lse) {
  const std::int64_t rows = in.q.extent[0], heads = in.q.extent[1];
  if (in.q.extent[2] != 512 || heads % 64 != 0 || rows == 0 || !all_vectorisable(in.q, in.local, out.o) ||
      (in.compressed.data && !vectorisable(in.compressed)) ||
      !has_sm90a_code(p, sparse_attention_sm90_kernel<L>))
    return false;
  const std::int64_t last = in.first_position + rows;
  const std::int64_t most = std::min(in.window, last) + (in.selected.data ? in.selected.extent[1]
                                                         : in.ratio > 0   ? last / in.ratio
                                                                          : 0);
  // Few queries: the keys of each are shared out among the multiprocessors, as far as scratch memory goes.
  const std::int64_t blocks = rows * (heads / 64), tiles = ceil_div(most, 64);
  const std::int64_t per_part = rows * heads * (512 + 2) * std::int64_t{sizeof(float)};
  const std::int64_t wanted = p.device().multiprocessors / blocks;
  const std::int64_t fit = static_cast<std::int64_t>(p.scratch_bytes()) / per_part;
  attention_parts parts{};
  parts.tiles = static_cast<int>(ceil_div(tiles, std::clamp<std::int64_t>(std::min(wanted, fit), 1, tiles)));
  parts.count = static_cast<int>(ceil_div(tiles, parts.tiles));
  if (parts.count > 1) {
    parts.o = reinterpret_cast<float*>(p.scratch());
    parts.top = parts.o + rows * heads * parts.count * 512;
    parts.weight = parts.top + rows * heads * parts.count;
  }
  p.launch("sparse_attention", sparse_attention_sm90_kernel<L>,
           dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts.count)), 384,
           sizeof(attention_memory) + 1024, in, out.o, lse, parts);
  if (parts.count > 1)
    p.launch("sparse_attention", sparse_attention_join_kernel<L>, dim3(static_cast<unsigned>(rows * heads)),
             128, 0, parts, out.o, lse);
  return true;
}

}  // namespace dsv4::detail
