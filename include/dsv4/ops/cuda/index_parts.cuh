// SPDX-License-Identifier: Apache-2.0
/// Selections from parts of the entries, and how they are joined.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/streaming_topk.cuh>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace dsv4::detail {

inline constexpr int index_threads = 256, index_join_threads = 1024;

/// Where a query's entries are many for one block: the k best of every `part_size` of them are candidates,
/// the k best of each `fan` such selections are candidates again, until one selection is left. All but the
/// last of a query's parts are full, so its candidates lie side by side, in ascending order of index.
template <class A>
struct index_parts {
  using Key = ordered_key<A>;
  int k, count;            ///< count: parts of the entries
  std::int64_t part_size;  ///< in entries
  int fan;
  Key *keys,
      *next_keys;  ///< of one level's candidates and the next one's, (N, selections(level), each(level))
  std::int32_t *indices, *next_indices;

  static constexpr std::int64_t entry = sizeof(Key) + sizeof(std::int32_t);
  /// Bytes of both levels' candidates for a query.
  std::int64_t bytes_per_query() const { return count > 1 ? (count + selections(2)) * k * entry : 0; }
  /// The memory that follows `memory`, for `queries` queries.
  void place(void* memory, std::int64_t queries) {
    const std::int64_t first = queries * count * k, second = queries * selections(2) * k;
    keys = static_cast<Key*>(memory);
    next_keys = keys + first;
    indices = reinterpret_cast<std::int32_t*>(next_keys + second);
    next_indices = indices + first;
  }

  /// At level 0 there are entries, at level l + 1 what selections(l + 1) blocks select of those of level l.
  __host__ __device__ std::int64_t selections(int level) const {
    std::int64_t n = count;
    for (int l = 1; l < level; ++l) n = (n + fan - 1) / fan;
    return n;
  }
  /// How many candidates of level l one selection is from.
  __host__ __device__ std::int64_t group(int level) const {
    std::int64_t g = part_size;
    for (int l = 0; l < level; ++l) g = fan * (g < k ? g : k);
    return g;
  }
  /// How many it selects, unless it is the last one.
  __host__ __device__ std::int64_t each(int level) const {
    const std::int64_t g = group(level - 1);
    return g < k ? g : k;
  }
  /// The candidates of level l of a query that sees `visible` entries.
  __device__ std::int64_t candidates(std::int64_t visible, int level) const {
    std::int64_t n = visible;
    for (int l = 0; l < level; ++l) {
      const std::int64_t g = group(l), c = each(l + 1), rest = n % g;
      n = n / g * c + (rest < k ? rest : k);
    }
    return n;
  }
};

/// Writes the best of a selection: to `selected`, or as candidates of the next level.
template <class A, int Threads>
__device__ void write_selected(const streaming_topk<ordered_key<A>, Threads>& top, std::int32_t* selected,
                               std::int64_t k) {
  top.shrink();
  __syncthreads();
  for (std::int64_t j = threadIdx.x; j < k; j += Threads)
    selected[j] = j < top.s->count ? top.indices[j] : -1;
}
template <class A, int Threads>
__device__ void write_candidates(const streaming_topk<ordered_key<A>, Threads>& top, ordered_key<A>* keys,
                                 std::int32_t* indices) {
  top.shrink();
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < top.s->count; j += Threads)
    keys[j] = top.keys[j], indices[j] = top.indices[j];
}

/// Block (query, selection): the best of a group of the candidates of `level`.
template <class A>
__global__ void __launch_bounds__(index_join_threads)
    index_join_kernel(index_parts<A> parts, int level, std::int64_t first_position, std::int64_t ratio,
                      matrix_view<std::int32_t, space::device> selected) {
  wait_for_previous_kernels();
  using Key = ordered_key<A>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ typename streaming_topk<Key, index_join_threads>::state state;
  const std::int64_t t = blockIdx.x, group = parts.group(level), begin = blockIdx.y * group;
  const std::int64_t all = parts.candidates((first_position + t + 1) / ratio, level);
  const int n = static_cast<int>(max(std::int64_t{0}, min(group, all - begin)));
  Key* const keys = reinterpret_cast<Key*>(memory);
  const streaming_topk<Key, index_join_threads> top{keys, reinterpret_cast<std::int32_t*>(keys + group),
                                                    static_cast<int>(group), parts.k, &state};
  const std::int64_t from = t * parts.selections(level) * parts.each(level) + begin;
  top.start(n, [&](int i, Key& key, std::int32_t& index) {
    key = parts.keys[from + i], index = parts.indices[from + i];
  });
  if (gridDim.y == 1) return write_selected<A>(top, &selected(t, 0), parts.k);
  const std::int64_t to = (t * gridDim.y + blockIdx.y) * parts.each(level + 1);
  write_candidates<A>(top, parts.next_keys + to, parts.next_indices + to);
}

/// How `rows` queries select k of at most `visible` entries in `count` parts each.
template <class A>
index_parts<A> make_index_parts(const exec::cuda& p, std::int64_t k, std::int64_t visible,
                                std::int64_t count) {
  index_parts<A> parts{};
  parts.k = static_cast<int>(k);
  parts.part_size = ceil_div(visible, 4 * count) * 4;  // for vectors of float
  parts.count = static_cast<int>(ceil_div(visible, parts.part_size));
  const std::int64_t room = static_cast<std::int64_t>(p.device().shared_memory_per_block) - 8192;
  parts.fan = static_cast<int>(std::clamp<std::int64_t>(room / (k * index_parts<A>::entry), 2, 16));
  return parts;
}

/// Queues what selects from the candidates of level 1 on.
template <class A>
void launch_index_join(const exec::cuda& p, std::string_view where, index_parts<A> parts,
                       std::int64_t first_position, std::int64_t ratio,
                       const matrix_view<std::int32_t, space::device>& selected) {
  for (int level = 1; parts.selections(level) > 1; ++level) {
    p.launch(
        where, index_join_kernel<A>,
        dim3(static_cast<unsigned>(selected.extent[0]), static_cast<unsigned>(parts.selections(level + 1))),
        index_join_threads, static_cast<std::size_t>(parts.group(level) * index_parts<A>::entry), parts,
        level, first_position, ratio, selected);
    std::swap(parts.keys, parts.next_keys), std::swap(parts.indices, parts.next_indices);
  }
}

}  // namespace dsv4::detail
