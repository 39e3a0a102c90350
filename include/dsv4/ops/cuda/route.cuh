// SPDX-License-Identifier: Apache-2.0
/// The expert router on the GPU: one warp per token, or eight that share its scores where tokens are few.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/route.hpp>

namespace dsv4 {

namespace detail {
/// route::score. In double, as on the host: selection compares scores that may be equal but for rounding.
__device__ __forceinline__ double route_score(double x) {
  return sqrt(x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)));
}

/// What selects an expert of score s: the score as T has it, and the bias.
template <class T>
__device__ __forceinline__ accumulator<T> route_key(double s, T bias) {
  return widened<accumulator<T>>(narrowed<T>(s)) + widened<accumulator<T>>(bias);
}

/// The weight of a chosen expert of score s, of those that add up to `sum`; NaN where the choice is not
/// `good`.
template <class T>
__device__ __forceinline__ T route_weight(double s, double sum, double factor, bool good) {
  return narrowed<T>(good ? (sum > 0 ? s / sum * factor : sum == 0 ? 0.0 : sum) : not_a_number<double>);
}

inline constexpr int route_warps = 8;

/// `Warps` warps of the block's eight score a token's experts, the first of them selects.
/// A kernel cannot throw: a token or table entry out of range gives expert 0 with weight NaN.
template <class T, int Warps>
__global__ void __launch_bounds__(32 * route_warps)
    route_kernel(matrix_view<const T, space::device> logits, vector_view<const T, space::device> bias,
                 matrix_view<const std::int32_t, space::device> table,
                 vector_view<const std::int32_t, space::device> tokens, double factor,
                 matrix_view<std::int32_t, space::device> experts, matrix_view<T, space::device> weights) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t t = std::int64_t{blockIdx.x} * (route_warps / Warps) + warp / Warps,
                     n = logits.extent[1];
  const std::int64_t k = experts.extent[1];
  if (t >= logits.extent[0]) return;
  // Of each of the block's tokens: scores, then what selects.
  double* const score = reinterpret_cast<double*>(memory) + warp / Warps * n;
  A* const key =
      reinterpret_cast<A*>(reinterpret_cast<double*>(memory) + route_warps / Warps * n) + warp / Warps * n;
  bool good = true;
  if (table.data) {
    if (warp % Warps != 0) return;
    const std::int64_t id = tokens(t);
    good = id >= 0 && id < table.extent[0];
    for (std::int64_t j = lane; j < k; j += 32) {
      const std::int32_t e = good ? table(id, j) : 0;
      good = good && e >= 0 && e < n;
      experts(t, j) = e >= 0 && e < n ? e : 0;
    }
    good = __all_sync(0xffffffffu, good);
  } else {
    const A taken = -infinity<A>;
    for (std::int64_t e = warp % Warps * 32 + lane; e < n; e += 32 * Warps) {
      score[e] = route_score(widened<double>(logits(t, e)));
      key[e] = route_key<T>(score[e], bias(e));
    }
    if constexpr (Warps > 1) __syncthreads();
    if (warp % Warps != 0) return;
    for (std::int64_t j = 0; j < k; ++j) {
      // The lane's best, then the warp's; ties to the lower expert. What is left once scores are gone (NaN
      // or -infinity) goes in order of number.
      A best = taken;
      int at = -1;
      __syncwarp();
      for (std::int64_t e = lane; e < n; e += 32) {
        if (key[e] > best) best = key[e], at = static_cast<int>(e);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        const A other = __shfl_xor_sync(0xffffffffu, best, step);
        const int other_at = __shfl_xor_sync(0xffffffffu, at, step);
        if (other_at >= 0 && (at < 0 || other > best || (other == best && other_at < at)))
          best = other, at = other_at;
      }
      if (at < 0) at = static_cast<int>(j < n ? j : 0), good = false;
      if (lane == 0) {
        experts(t, j) = at;
        key[at] = taken;
      }
    }
  }
  __syncwarp();
  const auto score_of = [&](std::int32_t e) {
    return table.data ? route_score(widened<double>(logits(t, e))) : score[e];
  };
  double sum = 0;
  for (std::int64_t j = lane; j < k; j += 32) sum += score_of(experts(t, j));
  sum = warp_sum(sum);
  for (std::int64_t j = lane; j < k; j += 32)
    weights(t, j) = route_weight<T>(score_of(experts(t, j)), sum, factor, good);
}

/// route::slope.
__device__ __forceinline__ double route_slope(double x) {
  if (x < -40) return 1;
  const double e = exp(x < 0 ? x : -x);
  return x > 0 ? 1 / (1 + e) / (x + log1p(e)) : e / (1 + e) / log1p(e);
}

/// One warp per token.
template <class T>
__global__ void __launch_bounds__(128)
    route_backward_kernel(matrix_view<const T, space::device> logits, double factor,
                          matrix_view<const std::int32_t, space::device> experts,
                          matrix_view<const T, space::device> dweights,
                          matrix_view<T, space::device> dlogits) {
  wait_for_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = std::int64_t{blockIdx.x} * 4 + threadIdx.x / 32, k = experts.extent[1];
  if (t >= logits.extent[0]) return;
  const auto logit = [&](std::int64_t j) { return widened<double>(logits(t, experts(t, j))); };
  double sum = 0, tau = 0;
  for (std::int64_t j = lane; j < k; j += 32) sum += route_score(logit(j));
  sum = warp_sum(sum);
  const auto share = [&](std::int64_t j) { return sum > 0 ? route_score(logit(j)) / sum : 0.0; };
  for (std::int64_t j = lane; j < k; j += 32) tau += widened<double>(dweights(t, j)) * factor * share(j);
  tau = warp_sum(tau);
  for (std::int64_t e = lane; e < logits.extent[1]; e += 32) dlogits(t, e) = T{};
  __syncwarp();
  for (std::int64_t j = 0; lane == 0 && j < k; ++j) {  // a table may name an expert twice
    T& to = dlogits(t, experts(t, j));
    to = narrowed<T>(widened<double>(to) +
                     (factor * widened<double>(dweights(t, j)) - tau) * share(j) * route_slope(logit(j)) / 2);
  }
}
}  // namespace detail

template <class T>
struct kernel<route<T, space::device>, exec::cuda> {
  using op = route<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    using detail::route_warps;
    const bool few = in.logits.extent[0] < p.device().multiprocessors;
    const std::size_t bytes = (few ? 1 : route_warps) * static_cast<std::size_t>(in.logits.extent[1]) *
                              (sizeof(double) + sizeof(detail::accumulator<T>));
    expect(bytes <= p.device().shared_memory_per_block, "route", "logits width",
           "as many experts as fit in shared memory", in.logits.extent[1]);
    p.launch("route", few ? detail::route_kernel<T, route_warps> : detail::route_kernel<T, 1>,
             dim3(static_cast<unsigned>(detail::ceil_div(in.logits.extent[0], few ? 1 : route_warps))),
             32 * route_warps, bytes, in.logits, in.bias, in.table, in.tokens, in.factor, out.experts,
             out.weights);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    p.launch("route", detail::route_backward_kernel<T>,
             dim3(static_cast<unsigned>(detail::ceil_div(in.logits.extent[0], 4))), 128, 0, in.logits,
             in.factor, kept.experts, up.dweights, g.dlogits);
  }
};

}  // namespace dsv4
