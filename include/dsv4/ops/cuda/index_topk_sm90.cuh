// SPDX-License-Identifier: Apache-2.0
/// The lightning indexer on Hopper's matrix units: bf16, 64 heads of 128 channels. Scores of a chunk of
/// queries go to scratch memory, where the selection finds them in the L2 cache.
#pragma once

#include <dsv4/ops/cuda/block_topk.cuh>
#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/index_parts.cuh>
#include <dsv4/ops/cuda/index_scores_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/streaming_topk.cuh>
#include <dsv4/ops/index_topk.hpp>

#include <cstdint>
#include <limits>

namespace dsv4::detail {

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

/// Scores of few queries, when reading the keys takes the time: warps go through the keys, 32 at a time,
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

/// Block (query, part): the best of scores[t, part], which stay in registers.
template <int Threads, int Each>
__global__ void __launch_bounds__(Threads)
    index_select_at_once_kernel(const float* scores, std::int64_t pitch, std::int64_t first_position,
                                std::int64_t ratio, std::int64_t first_query, index_parts<float> parts,
                                matrix_view<std::int32_t, space::device> selected) {
  wait_for_previous_kernels();
  __shared__ typename block_topk<Threads, Each>::state state;
  const std::int64_t i = blockIdx.x, t = first_query + i;
  const int k = static_cast<int>(selected.extent[1]);
  const std::int64_t visible = (first_position + t + 1) / ratio, begin = blockIdx.y * parts.part_size;
  const int n = static_cast<int>(max(std::int64_t{0}, min(visible - begin, parts.part_size)));
  const float* const from = scores + i * pitch + begin;
  if (parts.count == 1) {
    std::int32_t* const to = &selected(t, 0);
    block_topk<Threads, Each>::select(state, from, n, k, [&](int j, int index) { to[j] = index; });
    for (int j = n + static_cast<int>(threadIdx.x); j < k; j += Threads) to[j] = -1;
    return;
  }
  const std::int64_t to = (i * parts.count + blockIdx.y) * parts.each(1);
  block_topk<Threads, Each>::select(state, from, n, k, [&](int j, int index) {
    parts.keys[to + j] = to_ordered(from[index]);
    parts.indices[to + j] = static_cast<std::int32_t>(begin + index);
  });
}

/// The same for parts of any size.
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
      reinterpret_cast<std::uintptr_t>(in.weights.data) % 4 != 0 || in.weights.stride[0] % 2 != 0 ||
      in.first_position + rows > std::numeric_limits<int>::max() / 2 || in.ratio > 65536 ||
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
  if (chunk < std::min<std::int64_t>(rows, 32)) return false;
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
      launch_index_scores_sm90(p, in, first, now, scores, pitch);
    const auto select = [&](auto kernel, int block, std::size_t bytes, auto... more) {
      p.launch("index_topk", kernel, dim3(static_cast<unsigned>(now), static_cast<unsigned>(parts.count)),
               block, bytes, scores, pitch, in.first_position, in.ratio, first, more..., parts, out.selected);
    };
    const std::int64_t size = std::min(parts.part_size, seen);
    if (few && size <= 4096)
      select(index_select_at_once_kernel<1024, 4>, 1024, 0);
    else if (size <= 1024)
      select(index_select_at_once_kernel<256, 4>, 256, 0);
    else if (size <= 4096)
      select(index_select_at_once_kernel<256, 16>, 256, 0);
    else if (size <= 8192)
      select(index_select_at_once_kernel<512, 16>, 512, 0);
    else if (size <= 16384)
      select(index_select_at_once_kernel<1024, 16>, 1024, 0);
    else if (few)
      select(index_select_kernel<index_join_threads>, threads, select_bytes, capacity);
    else
      select(index_select_kernel<index_threads>, threads, select_bytes, capacity);
    launch_index_join(p, "index_topk", parts, in.first_position + first, in.ratio,
                      out.selected.rows(first, now));
  }
  return true;
}

}  // namespace dsv4::detail
