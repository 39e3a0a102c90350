// SPDX-License-Identifier: Apache-2.0
/// Selections from parts of the entries, and how they are joined.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/streaming_topk.cuh>

#include <cstdint>

namespace dsv4::detail {

inline constexpr int index_threads = 256;

/// Candidates of one part of the entries, for a second pass that joins the parts.
template <class A>
struct index_parts {
  ordered_key<A>* keys;   // (N, parts, k)
  std::int32_t* indices;  // (N, parts, k)
  std::int32_t* counts;   // (N, parts)
  int count;              ///< parts
};

template <class A>
__device__ void write_selected(const streaming_topk<ordered_key<A>, index_threads>& top,
                               std::int32_t* selected, std::int64_t k) {
  top.shrink();
  __syncthreads();
  for (std::int64_t j = threadIdx.x; j < k; j += index_threads)
    selected[j] = j < top.s->count ? top.indices[j] : -1;
}

/// The best of all parts; they come in ascending order of index, as the parts do.
template <class A>
__global__ void __launch_bounds__(index_threads)
    index_join_kernel(index_parts<A> parts, int capacity, matrix_view<std::int32_t, space::device> selected) {
  using Key = ordered_key<A>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ typename streaming_topk<Key, index_threads>::state state;
  const std::int64_t t = blockIdx.x;
  const int k = static_cast<int>(selected.extent[1]);
  Key* const keys = reinterpret_cast<Key*>(memory);
  const streaming_topk<Key, index_threads> top{keys, reinterpret_cast<std::int32_t*>(keys + capacity),
                                               capacity, k, &state};
  top.clear();
  for (int part = 0; part < parts.count; ++part) {
    const std::int64_t at = t * parts.count + part;
    const int count = parts.counts[at];
    for (int base = 0; base < count; base += index_threads) {
      const int j = base + static_cast<int>(threadIdx.x);
      const bool valid = j < count;
      top.push(valid, valid ? parts.keys[at * k + j] : Key{0}, valid ? parts.indices[at * k + j] : 0);
    }
  }
  write_selected<A>(top, &selected(t, 0), k);
}

}  // namespace dsv4::detail
