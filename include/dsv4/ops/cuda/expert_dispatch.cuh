// SPDX-License-Identifier: Apache-2.0
/// Sending rows to experts and back on the GPU, without asking the device how many went where.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/expert_dispatch.hpp>

namespace dsv4 {

namespace detail {
/// Block e finds the rows of expert e by itself: it counts the pairs of smaller experts, then places its own
/// in their order. Every block reads all pairs, which are few; no block waits for another. Block E writes the
/// last offset.
template <class T>
__global__ void __launch_bounds__(256)
    expert_sort_kernel(matrix_view<const std::int32_t, space::device> experts,
                       matrix_view<const T, space::device> weights,
                       vector_view<std::int64_t, space::device> offsets,
                       vector_view<std::int64_t, space::device> order,
                       vector_view<T, space::device> weight_sorted) {
  __shared__ std::int64_t partial[8];
  __shared__ int warp_count[8];
  const std::int64_t k = experts.extent[1], pairs = order.extent[0];
  const std::int64_t e = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  std::int64_t smaller = 0;
  for (std::int64_t pair = threadIdx.x; pair < pairs; pair += 256)
    smaller += experts(pair / k, pair % k) < e ? 1 : 0;
  std::int64_t row = block_sum(smaller, partial);
  if (threadIdx.x == 0) offsets(e) = row;
  if (e + 1 == offsets.extent[0]) return;
  for (std::int64_t base = 0; base < pairs; base += 256) {
    const std::int64_t pair = base + threadIdx.x;
    const bool mine = pair < pairs && experts(pair / k, pair % k) == e;
    const unsigned ballot = __ballot_sync(0xffffffffu, mine);
    __syncthreads();
    if (lane == 0) warp_count[warp] = __popc(ballot);
    __syncthreads();
    int before = __popc(ballot & ((1u << lane) - 1)), all = 0;
    for (int i = 0; i < 8; ++i) {
      before += i < warp ? warp_count[i] : 0;
      all += warp_count[i];
    }
    if (mine) {
      order(row + before) = pair;
      weight_sorted(row + before) = weights(pair / k, pair % k);
    }
    row += all;
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    expert_gather_kernel(matrix_view<const T, space::device> x,
                         vector_view<const std::int64_t, space::device> order, std::int64_t k,
                         matrix_view<T, space::device> x_sorted) {
  using P = pack<T, N>;
  const std::int64_t r = blockIdx.x, packs = x.extent[1] / N;
  const P* from = reinterpret_cast<const P*>(x.data + order(r) / k * x.stride[0]);
  P* to = reinterpret_cast<P*>(x_sorted.data + r * x_sorted.stride[0]);
  for (std::int64_t i = threadIdx.x; i < packs; i += blockDim.x) to[i] = from[i];
}

__global__ static void __launch_bounds__(256)
    expert_inverse_kernel(vector_view<const std::int64_t, space::device> order,
                          vector_view<std::int64_t, space::device> inverse) {
  for (std::int64_t r = global_thread(); r < order.extent[0]; r += global_threads()) inverse(order(r)) = r;
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    expert_combine_kernel(matrix_view<const T, space::device> y,
                          vector_view<const std::int64_t, space::device> inverse,
                          matrix_view<const T, space::device> shared, std::int64_t k,
                          matrix_view<T, space::device> out) {
  using A = accumulator<T>;
  using P = pack<T, N>;
  const std::int64_t t = blockIdx.x, packs = out.extent[1] / N;
  for (std::int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const P base = *reinterpret_cast<const P*>(&shared(t, i * N));
    A sum[N];
#pragma unroll
    for (int c = 0; c < N; ++c) sum[c] = widened<A>(base.value[c]);
    for (std::int64_t j = 0; j < k; ++j) {
      const P v = *reinterpret_cast<const P*>(&y(inverse(t * k + j), i * N));
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] += widened<A>(v.value[c]);
    }
    P result;
#pragma unroll
    for (int c = 0; c < N; ++c) result.value[c] = narrowed<T>(sum[c]);
    *reinterpret_cast<P*>(&out(t, i * N)) = result;
  }
}
}  // namespace detail

template <class T>
struct kernel<expert_dispatch<T, space::device>, exec::cuda> {
  using op = expert_dispatch<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    p.launch("expert_dispatch", detail::expert_sort_kernel<T>,
             dim3(static_cast<unsigned>(out.offsets.extent[0])), 256, 0, in.experts, in.weights, out.offsets,
             out.order, out.weight_sorted);
    const auto gather = [&](auto kernel) {
      p.launch("expert_dispatch", kernel, dim3(static_cast<unsigned>(out.order.extent[0])), 256, 0, in.x,
               out.order, in.experts.extent[1], out.x_sorted);
    };
    if (detail::all_vectorisable(in.x, out.x_sorted))
      gather(detail::expert_gather_kernel<T, n>);
    else
      gather(detail::expert_gather_kernel<T, 1>);
  }
};

template <class T>
struct kernel<expert_combine<T, space::device>, exec::cuda> {
  using op = expert_combine<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    const std::int64_t rows = out.out.extent[0], k = rows > 0 ? in.order.extent[0] / rows : 0;
    p.launch("expert_combine", detail::expert_inverse_kernel, detail::loop_grid(p, in.order.extent[0], 256),
             256, 0, in.order, out.inverse);
    const auto sum = [&](auto kernel) {
      p.launch("expert_combine", kernel, dim3(static_cast<unsigned>(rows)), 256, 0, in.y, out.inverse,
               in.shared, k, out.out);
    };
    if (detail::all_vectorisable(in.y, in.shared, out.out))
      sum(detail::expert_combine_kernel<T, n>);
    else
      sum(detail::expert_combine_kernel<T, 1>);
  }
};

}  // namespace dsv4
