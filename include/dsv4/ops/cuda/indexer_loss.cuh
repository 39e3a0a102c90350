// SPDX-License-Identifier: Apache-2.0
/// The indexer's loss on the GPU: a block per query, its entries' targets and estimates in shared memory.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>
#include <dsv4/ops/cuda/sparse_attention_backward.cuh>
#include <dsv4/ops/indexer_loss.hpp>

namespace dsv4 {

namespace detail {
template <class T>
using indexer_inputs = typename indexer_loss<T, space::device>::inputs;

/// The entries of query t.
template <class T>
struct indexer_entries {
  const std::int32_t* selected;
  std::int64_t count;

  __device__ indexer_entries(const indexer_inputs<T>& in, std::int64_t t)
      : selected(in.selected.data ? in.selected.data + t * in.selected.stride[0] : nullptr),
        count(selected ? in.selected.extent[1] : (in.first_position + t + 1) / in.ratio) {}
  /// Entry i, or -1.
  __device__ std::int64_t row(std::int64_t i) const { return selected ? selected[i] : i; }
};

/// index_q[t, j] . index_keys[s], by a warp.
template <class T>
__device__ accumulator<T> index_dot(const indexer_inputs<T>& in, std::int64_t t, std::int64_t j,
                                    std::int64_t s) {
  using A = accumulator<T>;
  A sum = 0;
  for (std::int64_t c = threadIdx.x % 32; c < in.index_q.extent[2]; c += 32)
    sum += widened<A>(in.index_q(t, j, c)) * widened<A>(in.index_keys(s, c));
  return warp_sum(sum);
}

/// The maximum over the block, in every thread.
template <class A>
__device__ A block_max(A value, A* partial) {
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  for (int i = 0; i < 8; ++i) value = partial[i] > value ? partial[i] : value;
  return value;
}

/// Fills target[i] = p and estimate[i] = log softmax(I) of query t's entries; 0 and -infinity where there is
/// none. `score` is scratch. Returns the sum of the targets. 256 threads.
template <class T>
__device__ accumulator<T> indexer_distributions(const indexer_inputs<T>& in, std::int64_t t,
                                                accumulator<T>* target, accumulator<T>* estimate,
                                                accumulator<T>* score, accumulator<T>* partial) {
  using A = accumulator<T>;
  const indexer_entries<T> entries(in, t);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) target[i] = 0;
  for (std::int64_t h = 0; h < in.q.extent[1]; ++h) {
    for (std::int64_t i = warp; i < entries.count; i += 8) {
      const std::int64_t s = entries.row(i);
      A dot = 0;
      for (std::int64_t c = threadIdx.x % 32; s >= 0 && c < in.q.extent[2]; c += 32)
        dot += widened<A>(in.q(t, h, c)) * widened<A>(in.compressed(s, c));
      dot = warp_sum(dot);
      if (threadIdx.x % 32 == 0) score[i] = s >= 0 ? dot * static_cast<A>(in.scale) : -infinity<A>;
    }
    __syncthreads();
    const A sink = in.target_includes_sink ? widened<A>(in.sinks(h)) : -infinity<A>;
    A top = sink;
    for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) top = score[i] > top ? score[i] : top;
    top = block_max(top, partial);
    if (top == -infinity<A>) continue;  // no entries: all threads agree
    A sum = 0;
    for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) sum += score[i] = exp(score[i] - top);
    sum = block_sum(sum, partial) + (in.target_includes_sink ? exp(sink - top) : A(0));
    for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) target[i] += score[i] / sum;
    __syncthreads();
  }
  A mass = 0;
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) mass += target[i];
  mass = block_sum(mass, partial);
  const A least = static_cast<A>(indexer_loss<T, space::device>::least_mass),
          divisor = mass > least ? mass : least;
  A whole = 0;
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) whole += target[i] /= divisor;
  whole = block_sum(whole, partial);

  for (std::int64_t i = warp; i < entries.count; i += 8) {
    const std::int64_t s = entries.row(i);
    A sum = 0;
    for (std::int64_t j = 0; s >= 0 && j < in.index_q.extent[1]; ++j) {
      const A dot = index_dot<T>(in, t, j, s);
      if (dot > A(0)) sum += widened<A>(in.index_weights(t, j)) * dot;
    }
    if (threadIdx.x % 32 == 0) estimate[i] = s >= 0 ? static_cast<A>(in.index_scale) * sum : -infinity<A>;
  }
  __syncthreads();
  A top = -infinity<A>, sum = 0;
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256) top = estimate[i] > top ? estimate[i] : top;
  top = block_max(top, partial);
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256)
    if (estimate[i] > -infinity<A>) sum += exp(estimate[i] - top);
  sum = block_sum(sum, partial);
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256)
    if (estimate[i] > -infinity<A>) estimate[i] -= top + log(sum);
  __syncthreads();
  return whole;
}

template <class T>
__global__ void __launch_bounds__(256)
    indexer_loss_kernel(indexer_inputs<T> in, std::int64_t most, vector_view<T, space::device> loss) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ A partial[8];
  A* const target = reinterpret_cast<A*>(memory);
  A* const estimate = target + most;
  const std::int64_t t = blockIdx.x;
  indexer_distributions<T>(in, t, target, estimate, estimate + most, partial);
  A sum = 0;
  for (std::int64_t i = threadIdx.x; i < indexer_entries<T>(in, t).count; i += 256)
    if (target[i] > A(0)) sum += target[i] * (log(target[i]) - estimate[i]);
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) loss(t) = narrowed<T>(sum);
}

/// Block t of a chunk of queries: its own gradients, and slope[t, i], what entry i's estimate is worth.
template <class T>
__global__ void __launch_bounds__(256)
    indexer_loss_backward_kernel(indexer_inputs<T> in, std::int64_t most, std::int64_t first,
                                 vector_view<const T, space::device> dloss,
                                 tensor_view<T, space::device> dindex_q,
                                 matrix_view<T, space::device> dindex_weights, accumulator<T>* slopes) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ A partial[8];
  A* const target = reinterpret_cast<A*>(memory);
  A* const estimate = target + most;
  const std::int64_t t = first + blockIdx.x, width = in.index_q.extent[2];
  const indexer_entries<T> entries(in, t);
  const A whole = indexer_distributions<T>(in, t, target, estimate, estimate + most, partial);
  A* const slope = slopes + blockIdx.x * most;
  for (std::int64_t i = threadIdx.x; i < entries.count; i += 256)
    slope[i] = estimate[i] =
        estimate[i] > -infinity<A>
            ? static_cast<A>(in.index_scale) * widened<A>(dloss(t)) * (exp(estimate[i]) * whole - target[i])
            : A(0);
  __syncthreads();
  // A warp has every eighth head; its lanes share the channels.
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (std::int64_t j = threadIdx.x / 32; j < in.index_q.extent[1]; j += 8) {
    const A weight = widened<A>(in.index_weights(t, j));
    A dweight = 0, dq[8] = {};
    for (std::int64_t base = 0; base < width || base == 0; base += 256) {
      for (A& v : dq) v = 0;
      for (std::int64_t i = 0; i < entries.count; ++i) {
        const std::int64_t s = entries.row(i);
        if (s < 0) continue;
        const A dot = index_dot<T>(in, t, j, s);
        if (dot <= A(0)) continue;
        if (base == 0) dweight += estimate[i] * dot;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const std::int64_t c = base + lane + 32 * k;
          if (c < width) dq[k] += estimate[i] * weight * widened<A>(in.index_keys(s, c));
        }
      }
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const std::int64_t c = base + lane + 32 * k;
        if (dindex_q.data && c < width) dindex_q(t, j, c) = narrowed<T>(dq[k]);
      }
    }
    if (dindex_weights.data && lane == 0) dindex_weights(t, j) = narrowed<T>(dweight);
  }
}

/// sums[e, :] += what the chunk's queries [first, first + count) add to the gradient of key e. One block per
/// key; a warp has every eighth query, and the warps are added up in their order.
template <class T>
__global__ void __launch_bounds__(256)
    indexer_keys_kernel(indexer_inputs<T> in, std::int64_t most, std::int64_t first, std::int64_t count,
                        const accumulator<T>* slopes, const unsigned* seen, std::int64_t words,
                        accumulator<T>* sums) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  A* const own = reinterpret_cast<A*>(memory);  // (8, width)
  const std::int64_t e = blockIdx.x, width = in.index_q.extent[2];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (std::int64_t c = lane; c < width; c += 32) own[warp * width + c] = 0;
  for (std::int64_t i = warp; i < count; i += 8) {
    const std::int64_t t = first + i;
    std::int64_t slot = e;
    if (seen) {
      if (!(seen[e * words + t / 32] >> (t % 32) & 1)) continue;
      slot = -1;
      for (std::int64_t base = 0; slot < 0 && base < in.selected.extent[1]; base += 32) {
        const std::int64_t at = base + lane;
        const unsigned found =
            __ballot_sync(0xffffffffu, at < in.selected.extent[1] && in.selected(t, at) == e);
        if (found) slot = base + __ffs(static_cast<int>(found)) - 1;
      }
    } else if ((e + 1) * in.ratio > in.first_position + t + 1) {
      continue;
    }
    const A slope = slopes[i * most + slot];
    if (slope == A(0)) continue;
    for (std::int64_t j = 0; j < in.index_q.extent[1]; ++j) {
      if (index_dot<T>(in, t, j, e) <= A(0)) continue;
      const A factor = slope * widened<A>(in.index_weights(t, j));
      for (std::int64_t c = lane; c < width; c += 32)
        own[warp * width + c] += factor * widened<A>(in.index_q(t, j, c));
    }
  }
  __syncthreads();
  for (std::int64_t c = threadIdx.x; c < width; c += 256) {
    A sum = sums[e * width + c];
    for (int i = 0; i < 8; ++i) sum += own[i * width + c];
    sums[e * width + c] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    narrow_kernel(const accumulator<T>* from, matrix_view<T, space::device> to) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < to.size(); i += global_threads())
    to(i / to.extent[1], i % to.extent[1]) = narrowed<T>(from[i]);
}
}  // namespace detail

template <class T>
struct kernel<indexer_loss<T, space::device>, exec::cuda> {
  using op = indexer_loss<T, space::device>;
  using A = detail::accumulator<T>;

  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = in.q.extent[0], most = most_entries(in, rows);
    p.launch("indexer_loss", detail::indexer_loss_kernel<T>, dim3(static_cast<unsigned>(rows)), 256,
             shared_bytes(p, most), in, most, out.loss);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const workspace_scope scope(w);
    const std::int64_t rows = in.q.extent[0], most = most_entries(in, rows),
                       entries = in.index_keys.extent[0], width = in.index_q.extent[2];
    // Chunks depend on the number of entries alone, so memory is linear in it and sums have a fixed order.
    const std::int64_t chunk = std::min(rows, std::max<std::int64_t>(64, (std::int64_t{1} << 23) / most));
    A* const slopes = take<A>(w, std::max<std::int64_t>(chunk, 1), most).data;
    const auto sums = take<A>(w, entries, width);
    if (g.dindex_keys.data) detail::clear(p, "indexer_loss", sums);
    unsigned* seen = nullptr;
    const std::int64_t words = detail::ceil_div(std::max<std::int64_t>(rows, 1), 32);
    if (in.selected.data && g.dindex_keys.data) {
      const auto bits = take<unsigned>(w, entries, words);
      detail::clear(p, "indexer_loss", bits);
      seen = bits.data;
      p.launch("indexer_loss", detail::attention_seen_kernel<T>,
               detail::loop_grid(p, in.selected.size(), 256), 256, 0, in.selected, entries, words, seen);
    }
    for (std::int64_t first = 0; first < rows; first += chunk) {
      const std::int64_t n = std::min(chunk, rows - first);
      p.launch("indexer_loss", detail::indexer_loss_backward_kernel<T>, dim3(static_cast<unsigned>(n)), 256,
               shared_bytes(p, most), in, most, first, up.dloss, g.dindex_q, g.dindex_weights, slopes);
      if (g.dindex_keys.data)
        p.launch("indexer_loss", detail::indexer_keys_kernel<T>, dim3(static_cast<unsigned>(entries)), 256,
                 static_cast<std::size_t>(8 * width) * sizeof(A), in, most, first, n, slopes, seen, words,
                 sums.data);
    }
    if (g.dindex_keys.data)
      p.launch("indexer_loss", detail::narrow_kernel<T>, detail::loop_grid(p, sums.size(), 256), 256, 0,
               sums.data, g.dindex_keys);
  }

 private:
  static std::int64_t most_entries(const typename op::inputs& in, std::int64_t rows) {
    return std::max<std::int64_t>(
        1, in.selected.data ? in.selected.extent[1] : (in.first_position + rows) / in.ratio);
  }
  static std::size_t shared_bytes(const exec::cuda& p, std::int64_t most) {
    const std::size_t bytes = 3 * static_cast<std::size_t>(most) * sizeof(A);
    expect(bytes + 1024 <= p.device().shared_memory_per_block, "indexer_loss", "entries of a query",
           "as many as fit in shared memory", most);
    return bytes;
  }
};

}  // namespace dsv4
