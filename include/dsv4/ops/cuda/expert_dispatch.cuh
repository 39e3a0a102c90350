// SPDX-License-Identifier: Apache-2.0
/// Sending rows to experts and back on the GPU, without asking the device how many went where.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/expert_dispatch.hpp>

namespace dsv4 {

namespace detail {
inline constexpr int expert_threads = 512;
/// Up to so many pairs of a token and an expert are sorted and gathered, or found and summed, by one kernel.
inline constexpr int few_pairs = expert_threads, most_summed = 64;

/// Block e finds the rows of expert e by itself: it counts the pairs of smaller experts, then places its own
/// in their order. Every block reads all pairs, which are few; no block waits for another. Block E writes the
/// last offset. `experts` and `weights` are dense. With `x_sorted` the block brings its rows too.
template <class T, int N>
__global__ void __launch_bounds__(expert_threads)
    expert_sort_kernel(const std::int32_t* experts, const T* weights, int pairs,
                       vector_view<std::int64_t, space::device> offsets,
                       vector_view<std::int64_t, space::device> order,
                       vector_view<T, space::device> weight_sorted, matrix_view<const T, space::device> x,
                       int k, matrix_view<T, space::device> x_sorted) {
  wait_for_previous_kernels();
  using P = pack<T, N>;
  constexpr int warps = expert_threads / 32;
  __shared__ int partial[warps], warp_count[warps], members[expert_threads];
  const int e = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  int smaller = 0;
#pragma unroll 8
  for (int pair = thread; pair < pairs; pair += expert_threads) smaller += experts[pair] < e ? 1 : 0;
  int row = block_sum(smaller, partial);
  if (thread == 0) offsets(e) = row;
  if (e + 1 == offsets.extent[0]) return;
  for (int base = 0; base < pairs; base += expert_threads) {
    const int pair = base + thread;
    const bool mine = pair < pairs && experts[pair] == e;
    if (!__syncthreads_or(mine)) continue;
    const unsigned ballot = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) warp_count[warp] = __popc(ballot);
    __syncthreads();
    int before = __popc(ballot & ((1u << lane) - 1)), all = 0;
#pragma unroll
    for (int i = 0; i < warps; ++i) {
      before += i < warp ? warp_count[i] : 0;
      all += warp_count[i];
    }
    if (mine) {
      order(row + before) = pair;
      weight_sorted(row + before) = weights[pair];
      members[before] = pair;
    }
    if (x_sorted.data) {
      __syncthreads();
      const int packs = static_cast<int>(x.extent[1]) / N;
      for (int i = thread; i < all * packs; i += expert_threads) {
        const P* const from = reinterpret_cast<const P*>(x.data + members[i / packs] / k * x.stride[0]);
        reinterpret_cast<P*>(x_sorted.data + (row + i / packs) * x_sorted.stride[0])[i % packs] =
            from[i % packs];
      }
    }
    row += all;
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    expert_gather_kernel(matrix_view<const T, space::device> x,
                         vector_view<const std::int64_t, space::device> order, std::int64_t k,
                         matrix_view<T, space::device> x_sorted) {
  wait_for_previous_kernels();
  using P = pack<T, N>;
  const std::int64_t r = blockIdx.x, packs = x.extent[1] / N;
  const P* from = reinterpret_cast<const P*>(x.data + order(r) / k * x.stride[0]);
  P* to = reinterpret_cast<P*>(x_sorted.data + r * x_sorted.stride[0]);
  for (std::int64_t i = threadIdx.x; i < packs; i += blockDim.x) to[i] = from[i];
}

__global__ static void __launch_bounds__(256)
    expert_inverse_kernel(vector_view<const std::int64_t, space::device> order,
                          vector_view<std::int64_t, space::device> inverse) {
  wait_for_previous_kernels();
  for (std::int64_t r = global_thread(); r < order.extent[0]; r += global_threads()) inverse(order(r)) = r;
}

/// out[t, :] = shared[t, :] + sum over j < k of y[row(j), :], by the blocks of one x.
template <class T, int N, class Row>
__device__ void sum_rows(const matrix_view<const T, space::device>& y, const Row& row,
                         const matrix_view<const T, space::device>& shared, std::int64_t k, std::int64_t t,
                         const matrix_view<T, space::device>& out) {  // shared may be empty
  using A = accumulator<T>;
  using P = pack<T, N>;
  const std::int64_t packs = out.extent[1] / N;
  const std::int64_t first = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < packs; i += std::int64_t{blockDim.x} * gridDim.y) {
    A sum[N] = {};
    if (shared.data) {
      const P base = *reinterpret_cast<const P*>(&shared(t, i * N));
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] = widened<A>(base.value[c]);
    }
#pragma unroll 6
    for (std::int64_t j = 0; j < k; ++j) {  // loads of several rows at a time
      const P v = *reinterpret_cast<const P*>(&y(row(j), i * N));
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] += widened<A>(v.value[c]);
    }
    P result;
#pragma unroll
    for (int c = 0; c < N; ++c) result.value[c] = narrowed<T>(sum[c]);
    *reinterpret_cast<P*>(&out(t, i * N)) = result;
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    expert_combine_kernel(matrix_view<const T, space::device> y,
                          vector_view<const std::int64_t, space::device> inverse,
                          matrix_view<const T, space::device> shared, std::int64_t k,
                          matrix_view<T, space::device> out) {
  wait_for_previous_kernels();
  const std::int64_t t = blockIdx.x;
  sum_rows<T, N>(
      y, [&](std::int64_t j) { return inverse(t * k + j); }, shared, k, t, out);
}

/// expert_combine_kernel and expert_inverse_kernel at once: a block looks for its token's rows. Block (token,
/// columns).
template <class T, int N>
__global__ void __launch_bounds__(256)
    expert_find_kernel(matrix_view<const T, space::device> y,
                       vector_view<const std::int64_t, space::device> order,
                       matrix_view<const T, space::device> shared, int k,
                       vector_view<std::int64_t, space::device> inverse, matrix_view<T, space::device> out) {
  wait_for_previous_kernels();
  __shared__ int rows[most_summed];
  const std::int64_t t = blockIdx.x;
  for (int r = static_cast<int>(threadIdx.x); r < order.extent[0]; r += 256) {
    const std::int64_t pair = order(r);
    if (pair / k != t) continue;
    rows[pair % k] = r;
    if (blockIdx.y == 0) inverse(pair) = r;
  }
  __syncthreads();
  sum_rows<T, N>(
      y, [&](std::int64_t j) { return rows[j]; }, shared, k, t, out);
}

template <class T>
__global__ void __launch_bounds__(256)
    expert_weights_kernel(vector_view<const T, space::device> sorted,
                          vector_view<const std::int64_t, space::device> inverse,
                          matrix_view<T, space::device> weights) {
  wait_for_previous_kernels();
  const std::int64_t k = weights.extent[1];
  for (std::int64_t pair = global_thread(); pair < inverse.extent[0]; pair += global_threads())
    weights(pair / k, pair % k) = sorted(inverse(pair));
}

/// out[t, :] = shared[t, :] + the rows of token t.
template <class T>
void launch_expert_sum(const exec::cuda& p, const char* where, const matrix_view<const T, space::device>& y,
                       const vector_view<const std::int64_t, space::device>& inverse,
                       const matrix_view<const T, space::device>& shared, std::int64_t k,
                       const matrix_view<T, space::device>& out) {
  const auto sum = [&](auto kernel) {
    p.launch(where, kernel, dim3(static_cast<unsigned>(out.extent[0])), 256, 0, y, inverse, shared, k, out);
  };
  if (all_vectorisable(y, out) && (!shared.data || vectorisable(shared)))
    sum(expert_combine_kernel<T, vector_width<T>>);
  else
    sum(expert_combine_kernel<T, 1>);
}

/// x_sorted[r, :] = x[order[r] / k, :].
template <class T>
void launch_expert_gather(const exec::cuda& p, const char* where,
                          const matrix_view<const T, space::device>& x,
                          const vector_view<const std::int64_t, space::device>& order, std::int64_t k,
                          const matrix_view<T, space::device>& x_sorted) {
  const auto gather = [&](auto kernel) {
    p.launch(where, kernel, dim3(static_cast<unsigned>(order.extent[0])), 256, 0, x, order, k, x_sorted);
  };
  if (all_vectorisable(x, x_sorted))
    gather(expert_gather_kernel<T, vector_width<T>>);
  else
    gather(expert_gather_kernel<T, 1>);
}

inline void launch_expert_inverse(const exec::cuda& p, const char* where,
                                  const vector_view<const std::int64_t, space::device>& order,
                                  const vector_view<std::int64_t, space::device>& inverse) {
  p.launch(where, expert_inverse_kernel, loop_grid(p, order.extent[0], 256), 256, 0, order, inverse);
}
}  // namespace detail

template <class T>
struct kernel<expert_dispatch<T, space::device>, exec::cuda> {
  using op = expert_dispatch<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t pairs = out.order.extent[0];
    expect(in.experts.dense() && in.weights.dense() && pairs < (std::int64_t{1} << 31), "expert_dispatch",
           "experts and weights", "dense arrays of less than 2^31", pairs);
    const bool few = pairs <= detail::few_pairs;
    const auto sort = [&](auto kernel) {
      p.launch("expert_dispatch", kernel, dim3(static_cast<unsigned>(out.offsets.extent[0])),
               detail::expert_threads, 0, in.experts.data, in.weights.data, static_cast<int>(pairs),
               out.offsets, out.order, out.weight_sorted, in.x, static_cast<int>(in.experts.extent[1]),
               few ? out.x_sorted : matrix_view<T, space::device>());
    };
    if (detail::all_vectorisable(in.x, out.x_sorted))
      sort(detail::expert_sort_kernel<T, detail::vector_width<T>>);
    else
      sort(detail::expert_sort_kernel<T, 1>);
    if (!few)
      detail::launch_expert_gather<T>(p, "expert_dispatch", in.x, out.order, in.experts.extent[1],
                                      out.x_sorted);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    const workspace_scope scope(w);
    const auto inverse = take<std::int64_t>(w, kept.order.extent[0]);
    detail::launch_expert_inverse(p, "expert_dispatch", kept.order, inverse);
    if (g.dx.data)
      detail::launch_expert_sum<T>(p, "expert_dispatch", up.dx_sorted, inverse, {}, in.experts.extent[1],
                                   g.dx);
    if (g.dweights.data)
      p.launch("expert_dispatch", detail::expert_weights_kernel<T>,
               detail::loop_grid(p, kept.order.extent[0], 256), 256, 0, up.dweight_sorted, inverse,
               g.dweights);
  }
};

template <class T>
struct kernel<expert_combine<T, space::device>, exec::cuda> {
  using op = expert_combine<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = out.out.extent[0], k = rows > 0 ? in.order.extent[0] / rows : 0;
    if (in.order.extent[0] <= detail::few_pairs && k <= detail::most_summed) {
      const auto find = [&](auto kernel) {
        // A single token is not for a single multiprocessor.
        p.launch("expert_combine", kernel, dim3(static_cast<unsigned>(rows), rows < 32 ? 4 : 1), 256, 0, in.y,
                 in.order, in.shared, static_cast<int>(k), out.inverse, out.out);
      };
      if (detail::all_vectorisable(in.y, out.out) && (!in.shared.data || detail::vectorisable(in.shared)))
        find(detail::expert_find_kernel<T, detail::vector_width<T>>);
      else
        find(detail::expert_find_kernel<T, 1>);
      return;
    }
    detail::launch_expert_inverse(p, "expert_combine", in.order, out.inverse);
    detail::launch_expert_sum<T>(p, "expert_combine", in.y, out.inverse, in.shared, k, out.out);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dout.extent[0], k = rows > 0 ? in.order.extent[0] / rows : 0;
    if (rows > 0) detail::launch_expert_gather<T>(p, "expert_combine", up.dout, in.order, k, g.dy);
  }
};

}  // namespace dsv4
