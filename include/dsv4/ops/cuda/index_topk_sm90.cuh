// SPDX-License-Identifier: Apache-2.0
/// The lightning indexer on Hopper's matrix units: bf16, 64 heads of 128 channels. Scores of a chunk of
/// queries go to scratch memory, where the selection finds them in the L2 cache.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/index_parts.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/streaming_topk.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>
#include <dsv4/ops/index_topk.hpp>

#include <cstdint>

namespace dsv4::detail {

struct alignas(1024) index_memory_sm90 {
  static constexpr int stages = 4;
  std::uint8_t q[stages][16 * 1024];  // a query's heads: two panels of 64 channels
  float weights[stages][64];
  phase_barrier full[stages], empty[stages];
};
inline constexpr int index_block_keys = 256, index_block_queries = 32;

/// Block (key block, query block): scores[t, s] for the visible ones. The keys stay in registers, 128 to a
/// warpgroup; queries pass by, their heads being the columns of the product, so that a score is a sum within
/// a thread and its three neighbours.
template <int Heads>
__global__ void __launch_bounds__(384, 1)
    index_scores_sm90_kernel(tensor_view<const bf16, space::device> q,
                             matrix_view<const bf16, space::device> keys,
                             matrix_view<const bf16, space::device> weights, std::int64_t first_position,
                             std::int64_t ratio, std::int64_t first_query, int queries, float* scores,
                             std::int64_t pitch) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  static_assert(Heads == 64);
  extern __shared__ __align__(1024) unsigned char raw[];
  index_memory_sm90& m =
      *reinterpret_cast<index_memory_sm90*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  const std::int64_t first_key = std::int64_t{blockIdx.x} * index_block_keys;
  const int begin = static_cast<int>(blockIdx.y) * index_block_queries,
            end = min(queries, begin + index_block_queries);
  // Queries that see a key of this block begin at `start`.
  const std::int64_t earliest = (first_key + 1) * ratio - 1 - (first_position + first_query);
  const int start = static_cast<int>(max(std::int64_t{begin}, min(earliest, std::int64_t{end})));
  if (start >= end) return;
  if (thread == 0) {
    for (int s = 0; s < index_memory_sm90::stages; ++s) {
      m.full[s].init(128 + 128);
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (group == 2) {
    give_registers<40>();
    const int own = thread - 256;
    for (int i = start; i < end; ++i) {
      const int n = i - start, stage = n % index_memory_sm90::stages, round = n / index_memory_sm90::stages;
      if (round > 0) m.empty[stage].wait((round - 1) & 1);
      const std::int64_t t = first_query + i;
      const std::uint32_t tile = shared_address(m.q[stage]);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int at = own + 128 * j, h = at / 16, column = at % 16;
        copy_16(tile + column / 8 * 8192 + tile_offset(h, column % 8),
                q.data + t * q.stride[0] + h * q.stride[1] + 8 * column, true);
      }
      m.full[stage].arrive_after_copies();
      if (own < 64) m.weights[stage][own] = static_cast<float>(weights(t, own));
      m.full[stage].arrive();
    }
    wait_for_copies();
    return;
  }

  take_registers<232>();
  const int warp = thread % 128 / 32;
  // Keys first + 64 tile + 16 warp + lane / 4 (+ 8), channels 16 step + 2 (lane % 4) (+ 8).
  const std::int64_t first = first_key + 128 * group + 16 * warp + lane / 4;
  std::uint32_t a[2][8][4];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t s = first + 64 * tile + 8 * r;
      const bf16* const row = keys.data + s * keys.stride[0] + 2 * (lane % 4);
#pragma unroll
      for (int step = 0; step < 8; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[tile][step][2 * half + r] =
              s < keys.extent[0] ? *reinterpret_cast<const std::uint32_t*>(row + 16 * step + 8 * half) : 0u;
    }
  float sums[2][32];
  for (int i = start; i < end; ++i) {
    const int n = i - start, stage = n % index_memory_sm90::stages, round = n / index_memory_sm90::stages;
    m.full[stage].wait(round & 1);
    fence_async_shared();
    const std::uint32_t tile = shared_address(m.q[stage]);
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 8; ++step)
        wgmma_registers<64>::run(sums[half], a[half][step],
                                 tile_descriptor(tile + step / 4 * 8192 + step % 4 * 32, 1024, 0), step > 0);
    wgmma_commit();
    float2 w[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      w[j] = *reinterpret_cast<const float2*>(&m.weights[stage][8 * j + 2 * (lane % 4)]);
    wgmma_wait<0>();
    keep(sums[0]);
    keep(sums[1]);
    m.empty[stage].arrive();
    const std::int64_t visible = (first_position + first_query + i + 1) / ratio;
    float* const to = scores + i * pitch;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float score = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          score += w[j].x * fmaxf(sums[half][4 * j + 2 * r], 0.0f);
          score += w[j].y * fmaxf(sums[half][4 * j + 2 * r + 1], 0.0f);
        }
        score += __shfl_xor_sync(0xffffffffu, score, 1);
        score += __shfl_xor_sync(0xffffffffu, score, 2);
        const std::int64_t s = first + 64 * half + 8 * r;
        if (lane % 4 == 0 && s < visible) to[s] = score;
      }
  }
#endif
}

/// Keys that a warp of index_few_scores_kernel scores at once, and 16-byte vectors from one row of its query
/// to the next in shared memory: rows of eight lanes fall on different banks.
inline constexpr int index_few_keys = 32, index_few_pitch = 20, index_few_blocks = 2;

/// Asks for the first keys of this warp.
inline __device__ void prefetch_keys(const matrix_view<const bf16, space::device>& keys,
                                     std::int64_t visible) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const std::int64_t key =
      (std::int64_t{blockIdx.x} * 8 + threadIdx.x / 32) * index_few_keys + threadIdx.x % 32;
  if (key < visible)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(keys.data + key * keys.stride[0]),
                 "r"(256));
#endif
}

/// The same for few queries, when reading the keys takes the time: warps go through the keys, 32 at a time,
/// as the rows of mma.m16n8k16's first operand, and all heads of query blockIdx.y. In which order channels
/// are summed is free, so a lane brings eight of a key's channels at once.
template <int Heads>
__global__ void __launch_bounds__(256, index_few_blocks)
    index_few_scores_kernel(tensor_view<const bf16, space::device> q,
                            matrix_view<const bf16, space::device> keys,
                            matrix_view<const bf16, space::device> weights, std::int64_t first_position,
                            std::int64_t ratio, std::int64_t first_query, float* scores, std::int64_t pitch) {
  prefetch_keys(keys, (first_position + first_query + blockIdx.y + 1) / ratio);
  wait_for_previous_kernels();
  __shared__ uint4 query[Heads * index_few_pitch];
  __shared__ float weight[Heads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4, l = lane % 4;
  const std::int64_t t = first_query + blockIdx.y, visible = (first_position + t + 1) / ratio;
  for (int i = thread; i < Heads * 16; i += 256)
    query[i / 16 * index_few_pitch + i % 16] =
        *reinterpret_cast<const uint4*>(q.data + t * q.stride[0] + i / 16 * q.stride[1] + i % 16 * 8);
  if (thread < Heads) weight[thread] = static_cast<float>(weights(t, thread));
  __syncthreads();
  float* const to = scores + blockIdx.y * pitch;
  for (std::int64_t first = (std::int64_t{blockIdx.x} * 8 + thread / 32) * index_few_keys; first < visible;
       first += std::int64_t{gridDim.x} * 8 * index_few_keys) {
    uint4 key[4][4];  // keys first + 8 i + g, channels 8 (l + 4 s) + ...
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t s = min(first + 8 * i + g, visible - 1);
#pragma unroll
      for (int step = 0; step < 4; ++step)
        key[i][step] = *reinterpret_cast<const uint4*>(keys.data + s * keys.stride[0] + 8 * (l + 4 * step));
    }
    float score[4] = {};
#pragma unroll 2
    for (int n = 0; n < Heads / 8; ++n) {
      float c[2][4] = {};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const uint4 b = query[(8 * n + g) * index_few_pitch + l + 4 * step];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 &a0 = key[2 * half][step], &a1 = key[2 * half + 1][step];
          multiply_16x8(c[half], a0.x, a1.x, a0.y, a1.y, b.x, b.y);
          multiply_16x8(c[half], a0.z, a1.z, a0.w, a1.w, b.z, b.w);
        }
      }
      const float w0 = weight[8 * n + 2 * l], w1 = weight[8 * n + 2 * l + 1];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[i] += w0 * fmaxf(c[i / 2][2 * (i % 2)], 0.0f);
        score[i] += w1 * fmaxf(c[i / 2][2 * (i % 2) + 1], 0.0f);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[i] += __shfl_xor_sync(0xffffffffu, score[i], 1);
      score[i] += __shfl_xor_sync(0xffffffffu, score[i], 2);
      const std::int64_t s = first + 8 * i + g;
      if (l == 0 && s < visible) to[s] = score[i];
    }
  }
}

/// Block (query, part): the best of scores[t, part].
template <int Threads>
__global__ void __launch_bounds__(Threads)
    index_select_kernel(const float* scores, std::int64_t pitch, std::int64_t first_position,
                        std::int64_t ratio, std::int64_t first_query, int capacity, index_parts<float> parts,
                        matrix_view<std::int32_t, space::device> selected) {
  wait_for_previous_kernels();
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ typename streaming_topk<unsigned, Threads>::state state;
  const std::int64_t i = blockIdx.x, t = first_query + i;
  const int k = static_cast<int>(selected.extent[1]);
  unsigned* const keys = reinterpret_cast<unsigned*>(memory);
  const streaming_topk<unsigned, Threads> top{keys, reinterpret_cast<std::int32_t*>(keys + capacity),
                                              capacity, k, &state};
  const std::int64_t visible = (first_position + t + 1) / ratio;
  const std::int64_t begin = blockIdx.y * parts.part_size, end = min(visible, begin + parts.part_size);
  const float* const from = scores + i * pitch;
  const int at_once = static_cast<int>(max(std::int64_t{0}, min(std::int64_t{capacity}, end - begin)));
  top.start(at_once, [&](int j, unsigned& key, std::int32_t& index) {
    key = to_ordered(from[begin + j]), index = static_cast<std::int32_t>(begin + j);
  });
  for (std::int64_t base = begin + at_once; base < end; base += Threads) {
    const std::int64_t s = base + threadIdx.x;
    const bool valid = s < end;
    top.push(valid, valid ? to_ordered(from[s]) : 0u, static_cast<std::int32_t>(s));
  }
  if (parts.count == 1) return write_selected<float>(top, &selected(t, 0), k);
  const std::int64_t to = (i * parts.count + blockIdx.y) * parts.each(1);
  write_candidates<float>(top, parts.keys + to, parts.indices + to);
}

/// Whether these kernels can do it; if so, queues them.
inline bool launch_index_topk_sm90(const exec::cuda& p, const index_topk<bf16, space::device>::inputs& in,
                                   const index_topk<bf16, space::device>::outputs& out) {
  const std::int64_t rows = in.q.extent[0], k = out.selected.extent[1];
  if (in.q.extent[1] != 64 || in.q.extent[2] != 128 || !all_vectorisable(in.q, in.keys) ||
      !has_sm90a_code(p, index_scores_sm90_kernel<64>))
    return false;
  const std::int64_t visible = (in.first_position + rows) / in.ratio;
  if (visible == 0) return false;
  // Parts of a query's scores are selected from at the same time where queries are few, by larger blocks.
  const bool few = rows < p.device().multiprocessors;
  const int threads = few ? index_join_threads : index_threads;
  const int capacity = static_cast<int>(k + std::max<std::int64_t>(k, 2 * threads));
  const std::size_t select_bytes = static_cast<std::size_t>(capacity * index_parts<float>::entry);
  if (select_bytes + 8192 > p.device().shared_memory_per_block) return false;
  const std::int64_t pitch = ceil_div(visible, 64) * 64;
  auto parts = make_index_parts<float>(
      p, k, visible,
      std::clamp<std::int64_t>(std::min(2 * p.device().multiprocessors / rows, visible / 2048), 1, 65535));
  const std::int64_t chunk = std::min(
      rows, (static_cast<std::int64_t>(p.scratch_bytes()) - 1024) / (pitch * 4 + parts.bytes_per_query()));
  if (chunk < std::min<std::int64_t>(rows, index_block_queries)) return false;
  float* const scores = reinterpret_cast<float*>(p.scratch());
  parts.place(scores + chunk * pitch, chunk);
  for (std::int64_t first = 0; first < rows; first += chunk) {
    const auto now = static_cast<int>(std::min(chunk, rows - first));
    const std::int64_t seen = (in.first_position + first + now) / in.ratio;
    if (now <= 8)
      p.launch("index_topk", index_few_scores_kernel<64>,
               dim3(static_cast<unsigned>(std::min<std::int64_t>(
                        ceil_div(seen, 8 * index_few_keys), index_few_blocks * p.device().multiprocessors)),
                    static_cast<unsigned>(now)),
               256, 0, in.q, in.keys, in.weights, in.first_position, in.ratio, first, scores, pitch);
    else
      p.launch("index_topk", index_scores_sm90_kernel<64>,
               dim3(static_cast<unsigned>(ceil_div(seen, index_block_keys)),
                    static_cast<unsigned>(ceil_div(now, index_block_queries))),
               384, sizeof(index_memory_sm90) + 1024, in.q, in.keys, in.weights, in.first_position, in.ratio,
               first, now, scores, pitch);
    const auto select = [&](auto kernel) {
      p.launch("index_topk", kernel, dim3(static_cast<unsigned>(now), static_cast<unsigned>(parts.count)),
               threads, select_bytes, scores, pitch, in.first_position, in.ratio, first, capacity, parts,
               out.selected);
    };
    few ? select(index_select_kernel<index_join_threads>) : select(index_select_kernel<index_threads>);
    launch_index_join(p, "index_topk", parts, in.first_position + first, in.ratio,
                      out.selected.rows(first, now));
  }
  return true;
}

}  // namespace dsv4::detail
