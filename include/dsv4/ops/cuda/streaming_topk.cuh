// SPDX-License-Identifier: Apache-2.0
/// The k largest of a stream of scores, kept by one block in shared memory.
#pragma once

#include <dsv4/numeric/ordered_key.hpp>
#include <dsv4/ops/cuda/common.cuh>

#include <cstdint>

namespace dsv4::detail {

/// What a block of `Threads` threads needs beside the entries.
template <class Key, int Threads>
struct topk_state {
  int count;
  Key threshold;  ///< a new key must be larger
  bool full;      ///< whether there is a threshold
  int bins[256];
  int warp_count[Threads / 32], warp_equal[Threads / 32];
  Key smallest[Threads / 32], largest[Threads / 32];  ///< per warp
  int above, bin;                                     ///< results of a bin search
};

/// Entries come in ascending order of index and stay so. Of equal keys the one that came first is larger, so
/// ties go to the lower index. Every member function is called by all threads of the block.
template <class Key, int Threads>
struct streaming_topk {
  using state = topk_state<Key, Threads>;
  static constexpr int Batches = sizeof(Key) == 8 ? 4 : 8;
  Key* keys;
  std::int32_t* indices;
  int capacity;  ///< at least k + Threads for push
  int k;
  state* s;

  __device__ void clear() const {
    __syncthreads();
    if (threadIdx.x == 0) s->count = 0, s->full = false;
    __syncthreads();
  }

  /// Begins with `n` candidates, at most `capacity`; load(i, key, index) brings the i-th.
  template <class Load>
  __device__ void start(int n, const Load& load) const {
    __syncthreads();
#pragma unroll 8
    for (int i = static_cast<int>(threadIdx.x); i < n; i += Threads) load(i, keys[i], indices[i]);
    if (threadIdx.x == 0) s->count = n, s->full = false;
    __syncthreads();
  }

  /// Takes one candidate per thread where `valid`, in the order of the threads.
  __device__ void push(bool valid, Key key, std::int32_t index) const {
    const bool candidate = valid && (!s->full || key > s->threshold);
    if (!__syncthreads_or(candidate)) return;  // most of the time, once there is a threshold
    int all;
    int before = place(candidate, all);
    if (s->count + all > capacity) {
      shrink();
      before = place(valid && (!s->full || key > s->threshold), all);
    }
    const int base = s->count;
    if (before >= 0) keys[base + before] = key, indices[base + before] = index;
    __syncthreads();
    if (threadIdx.x == 0) s->count = base + all;
    __syncthreads();
  }

  /// Drops all but the k largest.
  __device__ void shrink() const {
    const int count = s->count;
    if (count <= k) return;
    // The bits that all keys share are known; each pass finds up to eight more of those of the k-th largest.
    Key smallest, largest;
    range(count, smallest, largest);
    constexpr int bits = 8 * static_cast<int>(sizeof(Key));
    int left = smallest == largest ? 0 : bits - leading_zeros(smallest ^ largest);
    Key mask = left == bits ? Key{0} : ~Key{0} << left, prefix = smallest & mask;
    int wanted = k;  // how many of those with this prefix are still to be found
    while (left > 0) {
      const int width = min(left, 8), shift = left - width;
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += Threads) s->bins[i] = 0;
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < count; i += Threads)
        if ((keys[i] & mask) == prefix) atomicAdd(&s->bins[keys[i] >> shift & ((1 << width) - 1)], 1);
      __syncthreads();
      if (threadIdx.x < 32) find_bin(wanted);
      __syncthreads();
      wanted -= s->above;
      prefix |= static_cast<Key>(s->bin) << shift;
      mask |= static_cast<Key>((1 << width) - 1) << shift;
      left = shift;
      __syncthreads();
    }
    // The k-th largest key is `prefix`; `wanted` of those equal to it stay. A warp has `Batches` times 32
    // entries side by side, in registers before any thread writes; what is written lies at or before them.
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const unsigned earlier = (1u << lane) - 1;
    int kept = 0, equal = 0;  // before this round: entries that stay, entries equal to the k-th
    for (int base = 0; base < count; base += Batches * Threads) {
      Key key[Batches];
      std::int32_t index[Batches];
      unsigned is_larger[Batches], is_equal[Batches];
      int larger_of_warp = 0, equal_of_warp = 0;
#pragma unroll
      for (int j = 0; j < Batches; ++j) {
        const int i = base + (warp * Batches + j) * 32 + lane;
        key[j] = i < count ? keys[i] : 0, index[j] = i < count ? indices[i] : 0;
        is_larger[j] = __ballot_sync(0xffffffffu, i < count && key[j] > prefix);
        is_equal[j] = __ballot_sync(0xffffffffu, i < count && key[j] == prefix);
        larger_of_warp += __popc(is_larger[j]), equal_of_warp += __popc(is_equal[j]);
      }
      if (lane == 0) s->warp_count[warp] = larger_of_warp, s->warp_equal[warp] = equal_of_warp;
      __syncthreads();
      int larger_before = 0, equal_before = equal, all_larger = 0, all_equal = 0;
#pragma unroll 8
      for (int i = 0; i < Threads / 32; ++i) {
        larger_before += i < warp ? s->warp_count[i] : 0, equal_before += i < warp ? s->warp_equal[i] : 0;
        all_larger += s->warp_count[i], all_equal += s->warp_equal[i];
      }
#pragma unroll
      for (int j = 0; j < Batches; ++j) {
        const int ahead = equal_before + __popc(is_equal[j] & earlier);  // equal entries before this one
        const bool stays = is_larger[j] >> lane & 1 || (is_equal[j] >> lane & 1 && ahead < wanted);
        const int to =
            kept + larger_before + __popc(is_larger[j] & earlier) + min(ahead, wanted) - min(equal, wanted);
        if (stays) keys[to] = key[j], indices[to] = index[j];
        larger_before += __popc(is_larger[j]), equal_before += __popc(is_equal[j]);
      }
      kept += all_larger + min(equal + all_equal, wanted) - min(equal, wanted);
      equal += all_equal;
      __syncthreads();
    }
    if (threadIdx.x == 0) s->count = kept, s->threshold = prefix, s->full = true;
    __syncthreads();
  }

 private:
  __device__ static int leading_zeros(unsigned v) { return __clz(static_cast<int>(v)); }
  __device__ static int leading_zeros(unsigned long long v) { return __clzll(static_cast<long long>(v)); }

  /// Of the first `count` keys, which are one at least.
  __device__ void range(int count, Key& smallest, Key& largest) const {
    smallest = ~Key{0}, largest = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += Threads) {
      smallest = min(smallest, keys[i]);
      largest = max(largest, keys[i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      smallest = min(smallest, __shfl_xor_sync(0xffffffffu, smallest, step));
      largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    }
    if (threadIdx.x % 32 == 0)
      s->smallest[threadIdx.x / 32] = smallest, s->largest[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Threads / 32; ++i) {
      smallest = min(smallest, s->smallest[i]);
      largest = max(largest, s->largest[i]);
    }
  }

  /// How many threads before this one have `chosen`, or -1 where it is false; `all`: how many have it.
  __device__ int place(bool chosen, int& all) const {
    const unsigned ballot = __ballot_sync(0xffffffffu, chosen);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    __syncthreads();
    if (lane == 0) s->warp_count[warp] = __popc(ballot);
    __syncthreads();
    int before = __popc(ballot & ((1u << lane) - 1));
    all = 0;
#pragma unroll
    for (int i = 0; i < Threads / 32; ++i) {
      before += i < warp ? s->warp_count[i] : 0;
      all += s->warp_count[i];
    }
    return chosen ? before : -1;
  }

  /// The bin that holds the `wanted`-th largest, and how many lie in those above. By the first warp.
  __device__ void find_bin(int wanted) const {
    const int lane = static_cast<int>(threadIdx.x), first = 8 * (31 - lane);  // lane 0 has the top bins
    int own = 0;
    for (int i = 0; i < 8; ++i) own += s->bins[first + i];
    const int through = warp_sum_through(own);  // of this lane and those above
    int above = through - own;
    if (above < wanted && through >= wanted)
      for (int b = first + 7; b >= first; --b) {
        if (above + s->bins[b] >= wanted) {
          s->above = above, s->bin = b;
          break;
        }
        above += s->bins[b];
      }
  }
};

}  // namespace dsv4::detail
