// SPDX-License-Identifier: Apache-2.0
/// The lightning indexer's scores of many queries on Hopper's matrix units.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tensor_copy_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>
#include <dsv4/ops/index_topk.hpp>

#include <cstdint>

namespace dsv4::detail {

inline constexpr int index_block_keys = 256, index_window = 512, index_score_threads = 384;

/// Which keys meet which queries: key block b is seen by query max(0, step b + offset) and those after it.
/// Blocks of the grid share the pairs of a key block and a query that sees it, evenly, for `window` queries
/// at a time, which stay in the L2 cache while all of their keys pass.
struct index_pairs {
  int step, offset, queries, window;

  /// run(key block, first query, count) for what this block of the grid has to do.
  template <class Run>
  __device__ __forceinline__ void share(const Run& run) const {
    for (int from = 0; from < queries; from += window) {
      const int n = min(window, queries - from), at = offset - from;
      // Every query of the window sees blocks before `whole`, some see those before `end`.
      const int whole = at > 0 ? 0 : -at / step + 1, end = n > at ? (n - 1 - at) / step + 1 : 0;
      const auto pairs_before = [&](int b) {
        const int rest = max(0, b - whole);
        return b * n - rest * (at + step * whole) - step * (rest * (rest - 1) / 2);
      };
      const int all = pairs_before(end), blocks = static_cast<int>(gridDim.x),
                own = static_cast<int>(blockIdx.x), each = all / blocks, more = all % blocks;
      int pair = own * each + min(own, more);
      const int last = pair + each + (own < more);
      int low = 0, high = end;  // the block that `pair` belongs to
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (pairs_before(middle) <= pair ? low : high) = middle;
      }
      for (int b = low; pair < last; ++b) {
        const int first = max(0, step * b + at) + pair - pairs_before(b), count = min(n - first, last - pair);
        run(b, from + first, count);
        pair += count;
      }
    }
  }
};

struct alignas(1024) index_memory_sm90 {
  static constexpr int stages = 4;
  std::uint8_t keys[2][index_block_keys * 128];  // panels of 64 channels
  std::uint8_t q[stages][2][64 * 128];           // a query's heads: two panels
  float weights[stages][64];
  phase_barrier full[stages], empty[stages], keys_full, keys_empty;
};

/// v[0] of this lane and the one `Step` beside it in the lower of them, v[1] of both in the other.
template <int Step>
__device__ __forceinline__ float sum_of_two(const float (&v)[2]) {
  const bool upper = threadIdx.x & Step;
  return (upper ? v[1] : v[0]) + __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[1], Step);
}

/// scores[t, s] for the visible ones, of queries first_query + t. A warpgroup has 128 keys in registers;
/// queries pass by, their heads being the columns of the product, so that a score is a sum within a thread
/// and its three neighbours. While one half of the keys is multiplied, the other half's sums are added up.
template <int Heads>
__global__ void __launch_bounds__(index_score_threads, 1)
    index_scores_sm90_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap keys,
                             matrix_view<const bf16, space::device> weights, index_pairs pairs, int ratio,
                             int first_query, float* scores, std::int64_t pitch) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  static_assert(Heads == 64);
  constexpr int stages = index_memory_sm90::stages;
  extern __shared__ __align__(1024) unsigned char raw[];
  index_memory_sm90& m =
      *reinterpret_cast<index_memory_sm90*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, warp = thread % 128 / 32,
            lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < stages; ++s) {
      m.full[s].init(1 + 32);
      m.empty[s].init(256);
    }
    m.keys_full.init(1);
    m.keys_empty.init(8);
    fence_barrier_init();
  }
  __syncthreads();

  if (group == 2) {
    give_registers<40>();
    int n = 0;  // queries, or blocks of keys, so far
    if (warp == 0 && lane == 0) {
      pairs.share([&](int, int first, int count) {
        for (int i = first; i < first + count; ++i, ++n) {
          const int stage = n % stages;
          if (n >= stages) m.empty[stage].wait((n / stages - 1) & 1);
          arrive_expecting(m.full[stage], sizeof m.q[stage]);
          for (int panel = 0; panel < 2; ++panel)
            copy_box(shared_address(m.q[stage][panel]), q, {64 * panel, 0, first_query + i, 0},
                     m.full[stage]);
        }
      });
    } else if (warp == 1) {
      pairs.share([&](int, int first, int count) {
        const bf16* row = weights.data + (first_query + std::int64_t{first}) * weights.stride[0] + 2 * lane;
        std::uint32_t next = *reinterpret_cast<const std::uint32_t*>(row);
        for (int i = 0; i < count; ++i, ++n) {
          const std::uint32_t now = next;
          row += weights.stride[0];
          if (i + 1 < count) next = *reinterpret_cast<const std::uint32_t*>(row);
          const int stage = n % stages;
          if (n >= stages) m.empty[stage].wait((n / stages - 1) & 1);
          *reinterpret_cast<float2*>(&m.weights[stage][2 * lane]) =
              make_float2(__uint_as_float(now << 16), __uint_as_float(now & 0xffff0000u));
          m.full[stage].arrive();
        }
      });
    } else if (warp == 2 && lane == 0) {
      pairs.share([&](int block, int, int) {
        if (n > 0) m.keys_empty.wait((n - 1) & 1);
        arrive_expecting(m.keys_full, sizeof m.keys);
        for (int panel = 0; panel < 2; ++panel)
          copy_box(shared_address(m.keys[panel]), keys, {64 * panel, index_block_keys * block, 0, 0},
                   m.keys_full);
        ++n;
      });
    }
    return;
  }

  take_registers<232>();
  constexpr std::uint64_t descriptor_high = std::uint64_t{0x40000040} << 32;
  // Keys 128 group + 64 half + 16 warp + lane / 4 (+ 8), channels 16 step + 2 (lane % 4) (+ 8).
  std::uint32_t a[2][8][4];
  float sums[2][32];
  float2 w[8];
  int stage = 0, round = 0, loads = 0;
  const auto tiles = static_cast<std::uint32_t>(tile_descriptor(shared_address(m.q), 1024, 0));
  const auto multiply = [&](int half) {
    const std::uint32_t tile = tiles + static_cast<std::uint32_t>(stage) * (sizeof m.q[0] / 16);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 8; ++step)
      wgmma_registers<64>::run(sums[half], a[half][step],
                               descriptor_high | (tile + step / 4 * (sizeof m.q[0][0] / 16) + step % 4 * 2),
                               step > 0);
    wgmma_commit();
  };
  const auto weigh = [&](const float(&sum)[32]) {
    float part[2] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        part[r] += w[j].x * fmaxf(sum[4 * j + 2 * r], 0.0f);
        part[r] += w[j].y * fmaxf(sum[4 * j + 2 * r + 1], 0.0f);
      }
    return sum_of_two<1>(part);
  };
  pairs.share([&](int block, int first, int count) {
    m.keys_full.wait(loads++ & 1);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int step = 0; step < 8; ++step)
        load_matrices<false>(a[half][step], shared_address(m.keys[step / 4]) +
                                                tile_offset((2 * group + half) * 64 + 16 * warp + lane % 16,
                                                            step % 4 * 2 + lane / 16));
    __syncwarp();
    if (lane == 0) m.keys_empty.arrive();
    // Of the four scores that a lane has a part of it gets the one of this key.
    const int key =
        index_block_keys * block + 128 * group + 64 * (lane % 4 / 2) + 16 * warp + lane % 2 * 8 + lane / 4;
    const int sees = pairs.offset + key * ratio;  // the first query that does
    float* to = scores + first * pitch + key;
    float lower;
    const auto add_first = [&] {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        w[j] = *reinterpret_cast<const float2*>(&m.weights[stage][8 * j + 2 * (lane % 4)]);
      lower = weigh(sums[0]);
    };
    const auto add_second = [&](int i) {
      const float upper = weigh(sums[1]), score = sum_of_two<2>({lower, upper});
      if (i >= sees) *to = score;
      to += pitch;
    };
    const auto release = [&] {
      m.empty[stage].arrive();
      round ^= stage == stages - 1;
      stage = (stage + 1) % stages;
    };
    m.full[stage].wait(round);
    multiply(0);
    wgmma_wait<0>();
    keep(sums[0]);
    for (int i = first; i + 1 < first + count; ++i) {
      multiply(1);
      add_first();
      wgmma_wait<0>();
      keep(sums[1]);
      release();
      m.full[stage].wait(round);
      multiply(0);
      add_second(i);
      wgmma_wait<0>();
      keep(sums[0]);
    }
    multiply(1);
    add_first();
    wgmma_wait<0>();
    keep(sums[1]);
    release();
    add_second(first + count - 1);
  });
#endif
}

/// Queues the scores of `now` queries from `first` on.
inline void launch_index_scores_sm90(const exec::cuda& p, const index_topk<bf16, space::device>::inputs& in,
                                     std::int64_t first, int now, float* scores, std::int64_t pitch) {
  const auto ratio = static_cast<int>(in.ratio);
  const copied_tensor q{in.q.data,      128,           64, in.q.extent[0], 1, in.q.stride[1],
                        in.q.stride[0], in.q.stride[0]};
  const copied_tensor keys{
      in.keys.data, 128, in.keys.extent[0], 1, 1, in.keys.stride[0], in.keys.stride[0], in.keys.stride[0]};
  const index_pairs pairs{index_block_keys * ratio,
                          static_cast<int>(in.ratio - 1 - in.first_position - first), now, index_window};
  p.launch("index_topk", index_scores_sm90_kernel<64>, static_cast<unsigned>(p.device().multiprocessors),
           index_score_threads, sizeof(index_memory_sm90) + 1024, tensor_map<bf16>("index_topk", q, 64, 64),
           tensor_map<bf16>("index_topk", keys, 64, index_block_keys), in.weights, pairs, ratio,
           static_cast<int>(first), scores, pitch);
}

}  // namespace dsv4::detail
