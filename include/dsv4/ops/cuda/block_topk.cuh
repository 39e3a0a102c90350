// SPDX-License-Identifier: Apache-2.0
/// The k largest of as many scores as one block can keep in registers.
#pragma once

#include <dsv4/ops/cuda/streaming_topk.cuh>

#include <cstdint>

namespace dsv4::detail {

/// The block has `Threads` threads, each of which keeps `Each` scores. All of them call.
template <int Threads, int Each>
struct block_topk {
  static constexpr int capacity = Threads * Each, warps = Threads / 32, vectors = Each / 4;
  static constexpr int bins = 1024, listed = 64;
  static_assert(Each % 4 == 0 && Each <= 16 && warps <= 32 && bins % Threads == 0);
  struct state {
    int bin_count[bins];
    unsigned smallest[warps], largest[warps];
    int warp_count[warps];
    int bin, above, in_bin;  ///< results of a bin search
    int list_count;
    unsigned long long list[listed];
  };

  /// store(j, i) for the j-th in ascending order of i of the min(k, n) numbers i < n with the largest
  /// from[i], of equal ones those with the lowest i; n <= capacity, k > 0, `from` aligned to 16 bytes. A
  /// score that is not a number counts as the lowest.
  template <class Store>
  static __device__ void select(state& s, const float* from, int n, int k, const Store& store) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
              own = warp * Each * 32 + lane * 4;  // score j of this thread is from[at(j)]
    const auto at = [&](int j) { return own + j / 4 * 128 + j % 4; };
    if (n <= k) {
      for (int i = thread; i < n; i += Threads) store(i, i);
      return;
    }
    // What lies beyond the end is as low as can be and comes last.
    float value[Each];
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      float4 four = {-infinity<float>, -infinity<float>, -infinity<float>, -infinity<float>};
      const int i = at(4 * v);
      if (i + 4 <= n) {
        four = *reinterpret_cast<const float4*>(from + i);
      } else {
        if (i < n) four.x = from[i];
        if (i + 1 < n) four.y = from[i + 1];
        if (i + 2 < n) four.z = from[i + 2];
      }
      value[4 * v] = four.x, value[4 * v + 1] = four.y, value[4 * v + 2] = four.z, value[4 * v + 3] = four.w;
    }
    float low = infinity<float>, high = -infinity<float>;
#pragma unroll
    for (int j = 0; j < Each; ++j) {
      high = fmaxf(high, value[j]);
      if (value[j] > -infinity<float>) low = fminf(low, value[j]);
    }
    unsigned smallest = to_ordered(low), largest = to_ordered(high);
    if (thread == 0) s.list_count = 0;
    range(s, smallest, largest);
    low = from_ordered<float>(smallest);

    // First the scores are counted by bins of values.
    unsigned chosen = 0, open = (1u << Each) - 1;  // bit j: score j is one of the largest, or may be
    int wanted = k;                                // of the open ones
    bool done = false;
    const float scale = (bins - 1) / (from_ordered<float>(largest) - low);
    if (scale > 0 && scale < infinity<float>) {
#pragma unroll
      for (int j = 0; j < Each; ++j) {
        // Adding 2^23 rounds to an integer, which the lowest bits hold.
        value[j] = fmaf(fmaxf(value[j] - low, 0.0f), scale, 0x1p23f);
        atomicAdd(&s.bin_count[__float_as_uint(value[j]) % bins], 1);
      }
      __syncthreads();
      find_bin(s, wanted);
      wanted -= s.above;
      const float bin = 0x1p23f + static_cast<float>(s.bin);
      open = 0;
#pragma unroll
      for (int j = 0; j < Each; ++j) {
        if (value[j] > bin) chosen |= 1u << j;
        if (value[j] == bin) open |= 1u << j;
      }
      done = s.in_bin == wanted;
      if (done) {
        chosen |= open;
      } else if (s.in_bin <= listed) {
        for (unsigned left = open; left != 0; left &= left - 1)
          s.list[atomicAdd(&s.list_count, 1)] = entry(from, n, at(__ffs(static_cast<int>(left)) - 1));
        __syncthreads();
        for (unsigned left = open; left != 0; left &= left - 1) {
          const int j = __ffs(static_cast<int>(left)) - 1;
          const unsigned long long own_entry = entry(from, n, at(j));
          int better = 0;
          for (int i = 0; i < s.in_bin; ++i) better += s.list[i] > own_entry;
          if (better < wanted) chosen |= 1u << j;
        }
        done = true;
      }
    }
    // Then by bins of ordered keys, of which a round leaves a thousandth of the range.
    while (!done) {
      smallest = ~0u, largest = 0;
      const auto each_open = [&](const auto& visit) {
        for (unsigned left = open; left != 0; left &= left - 1) {
          const int j = __ffs(static_cast<int>(left)) - 1;
          visit(1u << j, static_cast<unsigned>(entry(from, n, at(j)) >> 32));
        }
      };
      each_open([&](unsigned, unsigned key) { smallest = min(smallest, key), largest = max(largest, key); });
      __syncthreads();  // all have read the range before
      range(s, smallest, largest);
      if (smallest == largest) break;
      const int shift = max(0, 22 - __clz(static_cast<int>(largest - smallest)));
      each_open([&](unsigned, unsigned key) { atomicAdd(&s.bin_count[(key - smallest) >> shift], 1); });
      __syncthreads();
      find_bin(s, wanted);
      wanted -= s.above;
      done = s.in_bin == wanted;
      const unsigned bin = static_cast<unsigned>(s.bin);
      each_open([&](unsigned bit, unsigned key) {
        const unsigned b = (key - smallest) >> shift;
        if (b > bin || (b == bin && done)) chosen |= bit;
        if (b != bin) open ^= bit;
      });
      __syncwarp();
    }
    int before[vectors];
    if (!done) {  // what is still open is equal
      rank(s, open, before);
#pragma unroll
      for (int j = 0; j < Each; ++j)
        if (open >> j & 1 && before[j / 4]++ < wanted) chosen |= 1u << j;
      __syncthreads();
    }
    rank(s, chosen, before);
#pragma unroll
    for (int j = 0; j < Each; ++j)
      if (chosen >> j & 1) store(before[j / 4]++, at(j));
  }

 private:
  /// Larger for a larger score, of equal ones for the lower index.
  static __device__ __forceinline__ unsigned long long entry(const float* from, int n, int i) {
    const unsigned key = to_ordered(fmaxf(i < n ? from[i] : -infinity<float>, -infinity<float>));
    return static_cast<unsigned long long>(key) << 32 | ~static_cast<unsigned>(i);
  }

  /// Of the block's values, from those of the threads; clears the bins.
  static __device__ __forceinline__ void range(state& s, unsigned& smallest, unsigned& largest) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    smallest = __reduce_min_sync(0xffffffffu, smallest), largest = __reduce_max_sync(0xffffffffu, largest);
    if (lane == 0) s.smallest[warp] = smallest, s.largest[warp] = largest;
    for (int i = static_cast<int>(threadIdx.x); i < bins; i += Threads) s.bin_count[i] = 0;
    __syncthreads();
    smallest = __reduce_min_sync(0xffffffffu, lane < warps ? s.smallest[lane] : ~0u);
    largest = __reduce_max_sync(0xffffffffu, lane < warps ? s.largest[lane] : 0u);
  }

  /// The bin that holds the `wanted`-th largest, how many it holds, and how many lie in those above.
  static __device__ void find_bin(state& s, int wanted) {
    constexpr int each = bins / Threads;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
              top = bins - 1 - thread * each;  // thread 0 has the top bins
    int own = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) own += s.bin_count[top - i];
    const int through = warp_sum_through(own);
    if (lane == 31) s.warp_count[warp] = through;
    __syncthreads();
    int above = __reduce_add_sync(0xffffffffu, lane < warp ? s.warp_count[lane] : 0) + through - own;
    if (above < wanted && above + own >= wanted)
      for (int b = top;; --b) {
        const int count = s.bin_count[b];
        if (above + count >= wanted) {
          s.bin = b, s.above = above, s.in_bin = count;
          break;
        }
        above += count;
      }
    __syncthreads();
  }

  /// How many bits of the block's masks come before the first one of each of this thread's vectors.
  static __device__ __forceinline__ void rank(state& s, unsigned mask, int (&before)[vectors]) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    unsigned own = 0;  // a byte for each vector
#pragma unroll
    for (int v = 0; v < vectors; ++v) own |= static_cast<unsigned>(__popc(mask >> 4 * v & 15)) << 8 * v;
    const unsigned through = warp_sum_through(own);
    const unsigned all = __shfl_sync(0xffffffffu, through, 31);
    int of_warp = 0;
#pragma unroll
    for (int v = 0; v < vectors; ++v) of_warp += static_cast<int>(all >> 8 * v & 255);
    if (lane == 0) s.warp_count[warp] = of_warp;
    __syncthreads();
    int base = __reduce_add_sync(0xffffffffu, lane < warp ? s.warp_count[lane] : 0);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      before[v] = base + static_cast<int>((through - own) >> 8 * v & 255);
      base += static_cast<int>(all >> 8 * v & 255);
    }
  }
};

}  // namespace dsv4::detail
