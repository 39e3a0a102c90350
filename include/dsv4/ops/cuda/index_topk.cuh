// SPDX-License-Identifier: Apache-2.0
/// The lightning indexer on the GPU: scores of a tile of entries go straight into a running top-k.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/index_parts.cuh>
#include <dsv4/ops/cuda/index_topk_sm90.cuh>
#include <dsv4/ops/cuda/streaming_topk.cuh>
#include <dsv4/ops/index_topk.hpp>

namespace dsv4 {

namespace detail {
inline constexpr int index_heads_at_once = 8;

/// Where a block keeps what in shared memory.
template <class A>
struct index_memory {
  int heads;  ///< rounded up to a multiple of index_heads_at_once
  int width;
  int capacity;  ///< of the candidate list
  static index_memory make(std::int64_t heads, std::int64_t width, std::int64_t k) {
    return {static_cast<int>(ceil_div(heads, index_heads_at_once)) * index_heads_at_once,
            static_cast<int>(width), static_cast<int>(k + std::max<std::int64_t>(k, 2 * index_threads))};
  }
  __host__ __device__ std::size_t keys_at() const {
    return static_cast<std::size_t>(heads) * (width + 1) * sizeof(A);
  }
  __host__ __device__ std::size_t indices_at() const {
    return keys_at() + static_cast<std::size_t>(capacity) * sizeof(ordered_key<A>);
  }
  std::size_t bytes() const {
    return indices_at() + static_cast<std::size_t>(capacity) * sizeof(std::int32_t);
  }
};

/// Block (t, part): the best entries of one part of those visible to query t. A thread scores one entry of
/// a tile, eight heads at a time.
template <class T, int N>
__global__ void __launch_bounds__(index_threads)
    index_topk_kernel(tensor_view<const T, space::device> q, matrix_view<const T, space::device> keys,
                      matrix_view<const T, space::device> weights, std::int64_t first_position,
                      std::int64_t ratio, index_memory<accumulator<T>> memory_,
                      index_parts<accumulator<T>> parts, matrix_view<std::int32_t, space::device> selected) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ typename streaming_topk<ordered_key<A>, index_threads>::state state;
  A* const query = reinterpret_cast<A*>(memory);            // (heads, width)
  A* const weight = query + memory_.heads * memory_.width;  // (heads)
  const std::int64_t t = blockIdx.x;
  const int k = static_cast<int>(selected.extent[1]), width = memory_.width;
  const streaming_topk<ordered_key<A>, index_threads> top{
      reinterpret_cast<ordered_key<A>*>(memory + memory_.keys_at()),
      reinterpret_cast<std::int32_t*>(memory + memory_.indices_at()), memory_.capacity, k, &state};
  for (int i = static_cast<int>(threadIdx.x); i < memory_.heads * width; i += index_threads) {
    const int h = i / width;
    query[i] = h < q.extent[1] ? widened<A>(q(t, h, i % width)) : A(0);
  }
  for (int h = static_cast<int>(threadIdx.x); h < memory_.heads; h += index_threads)
    weight[h] = h < q.extent[1] ? widened<A>(weights(t, h)) : A(0);
  top.clear();
  const std::int64_t visible = (first_position + t + 1) / ratio;
  const std::int64_t begin = blockIdx.y * parts.part_size, end = min(visible, begin + parts.part_size);
  for (std::int64_t base = begin; base < end; base += index_threads) {
    const std::int64_t s = base + threadIdx.x;
    A score = 0;
    if (s < end) {
      const T* const row = keys.data + s * keys.stride[0];
      for (int h = 0; h < memory_.heads; h += index_heads_at_once) {
        A dot[index_heads_at_once] = {};
        for (int c = 0; c < width; c += N) {
          const P v = *reinterpret_cast<const P*>(row + c);
#pragma unroll
          for (int j = 0; j < index_heads_at_once; ++j)
#pragma unroll
            for (int i = 0; i < N; ++i) dot[j] += query[(h + j) * width + c + i] * widened<A>(v.value[i]);
        }
#pragma unroll
        for (int j = 0; j < index_heads_at_once; ++j)
          score += weight[h + j] * (dot[j] > A(0) ? dot[j] : A(0));
      }
    }
    top.push(s < end, to_ordered(score), static_cast<std::int32_t>(s));
  }
  if (parts.count == 1) return write_selected<A>(top, &selected(t, 0), k);
  const std::int64_t to = (t * parts.count + blockIdx.y) * parts.each(1);
  write_candidates<A>(top, parts.keys + to, parts.indices + to);
}
}  // namespace detail

template <class T>
struct kernel<index_topk<T, space::device>, exec::cuda> {
  using op = index_topk<T, space::device>;
  using A = detail::accumulator<T>;

  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = in.q.extent[0], k = out.selected.extent[1];
    if (rows == 0 || k == 0) return;
    if constexpr (std::is_same_v<T, bf16>)
      if (detail::launch_index_topk_sm90(p, in, out)) return;
    portable(p, in, out);
  }

  /// The kernel for any type and device, also to compare the fast one with.
  static void portable(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = in.q.extent[0], k = out.selected.extent[1];
    const auto memory = detail::index_memory<A>::make(in.q.extent[1], in.q.extent[2], k);
    expect(memory.bytes() + 4096 <= p.device().shared_memory_per_block, "index_topk", "heads, width and k",
           "what fits in shared memory", static_cast<std::int64_t>(memory.bytes()));
    // Few queries: their entries are shared out among the multiprocessors.
    const std::int64_t visible = std::max<std::int64_t>(1, (in.first_position + rows) / in.ratio);
    const std::int64_t fit =
        static_cast<std::int64_t>(p.scratch_bytes()) / (2 * rows * k * detail::index_parts<A>::entry);
    const std::int64_t wanted = 2 * p.device().multiprocessors / rows;
    const std::int64_t most =
        std::clamp<std::int64_t>(std::min({wanted, fit, visible / (4 * detail::index_threads)}), 1, 65535);
    auto parts = detail::make_index_parts<A>(p, k, visible, most);
    parts.place(p.scratch(), rows);
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(parts.count));
    const auto run = [&](auto kernel) {
      p.launch("index_topk", kernel, grid, detail::index_threads, memory.bytes(), in.q, in.keys, in.weights,
               in.first_position, in.ratio, memory, parts, out.selected);
    };
    if (detail::vectorisable(in.keys))
      run(detail::index_topk_kernel<T, detail::vector_width<T>>);
    else
      run(detail::index_topk_kernel<T, 1>);
    detail::launch_index_join(p, "index_topk", parts, in.first_position, in.ratio, out.selected);
  }
};

}  // namespace dsv4
