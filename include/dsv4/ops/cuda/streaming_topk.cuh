// SPDX-License-Identifier: Apache-2.0
/// The k largest of a stream of scores, kept by one block in shared memory.
#pragma once

#include <dsv4/ops/cuda/common.cuh>

#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

/// Unsigned integers in the order of the floating-point numbers; +0 and -0 are equal.
template <class A>
using ordered_key = std::conditional_t<sizeof(A) == 8, unsigned long long, unsigned>;
template <class A>
__device__ __forceinline__ ordered_key<A> to_ordered(A value) {
  using K = ordered_key<A>;
  constexpr K sign = K{1} << (8 * sizeof(K) - 1);
  if (value == A(0)) return sign;
  const K bits = __builtin_bit_cast(K, value);
  return bits & sign ? ~bits : bits | sign;
}

/// What a block of `Threads` threads needs beside the entries.
template <class Key, int Threads>
struct topk_state {
  int count;
  Key threshold;  ///< a new key must be larger
  bool full;      ///< whether there is a threshold
  int bins[256];
  int warp_count[Threads / 32];
  int above, bin;  ///< results of a bin search
};

/// Entries come in ascending order of index and stay so. Of equal keys the one that came first is larger, so
/// ties go to the lower index. Every member function is called by all threads of the block.
template <class Key, int Threads>
struct streaming_topk {
  using state = topk_state<Key, Threads>;
  Key* keys;
  std::int32_t* indices;
  int capacity;  ///< at least k + Threads
  int k;
  state* s;

  __device__ void clear() const {
    __syncthreads();
    if (threadIdx.x == 0) s->count = 0, s->full = false;
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
    Key prefix = 0, mask = 0;
    int wanted = k;  // how many of those with this prefix are still to be found
    for (int shift = 8 * static_cast<int>(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += Threads) s->bins[i] = 0;
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < count; i += Threads)
        if ((keys[i] & mask) == prefix) atomicAdd(&s->bins[keys[i] >> shift & 0xFF], 1);
      __syncthreads();
      if (threadIdx.x < 32) find_bin(wanted);
      __syncthreads();
      wanted -= s->above;
      prefix |= static_cast<Key>(s->bin) << shift;
      mask |= Key{0xFF} << shift;
      __syncthreads();
    }
    // The k-th largest key is `prefix`; `wanted` of those equal to it stay.
    int kept = 0, equal = 0;
    for (int base = 0; base < count; base += Threads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const Key key = i < count ? keys[i] : 0;
      const std::int32_t index = i < count ? indices[i] : 0;
      int all_equal, all;
      const int rank = place(i < count && key == prefix, all_equal);
      const int before = place(i < count && (key > prefix || (rank >= 0 && equal + rank < wanted)), all);
      // place() waited for all reads of this round; what is written lies at or before it.
      if (before >= 0) keys[kept + before] = key, indices[kept + before] = index;
      kept += all, equal += all_equal;
    }
    __syncthreads();
    if (threadIdx.x == 0) s->count = kept, s->threshold = prefix, s->full = true;
    __syncthreads();
  }

 private:
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
    int through = own;  // of this lane and those above
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, through, step);
      if (lane >= step) through += other;
    }
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
