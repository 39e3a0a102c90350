// SPDX-License-Identifier: Apache-2.0
/// Balance of experts on the GPU, in double: scores by rows, sums over a sequence by columns, in an order
/// that depends on its length alone.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/route.cuh>
#include <dsv4/train/cuda/gradient_clip.cuh>
#include <dsv4/train/router_balance.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4 {

namespace detail {
using device_experts = matrix_view<const std::int32_t, space::device>;
using device_offsets = vector_view<const std::int64_t, space::device>;

/// Integers: the order of the additions does not matter.
__device__ __forceinline__ void count_expert(std::int64_t* loads, std::int64_t experts, std::int32_t e) {
  if (e >= 0 && e < experts) atomicAdd(reinterpret_cast<unsigned long long*>(loads + e), 1ull);
}

template <class Load>
__global__ void __launch_bounds__(256)
    expert_loads_kernel(device_experts chosen, vector_view<Load, space::device> loads) {
  wait_for_previous_kernels();
  const std::int64_t k = chosen.extent[1], count = chosen.extent[0] * k;
  for (std::int64_t i = global_thread(); i < count; i += global_threads())
    count_expert(loads.data, loads.extent[0], chosen(i / k, i % k));
}

template <class T>
__global__ void __launch_bounds__(256)
    router_bias_kernel(device_offsets loads, double speed, vector_view<T, space::device> bias) {
  wait_for_previous_kernels();
  std::int64_t total = 0;
  for (std::int64_t e = 0; e < loads.extent[0]; ++e) total += loads(e);
  for (std::int64_t e = threadIdx.x; e < bias.extent[0]; e += blockDim.x) {
    const std::int64_t missing = total - loads(e) * loads.extent[0];
    bias(e) = narrowed<T>(widened<double>(bias(e)) + (missing > 0 ? speed : missing < 0 ? -speed : 0.0));
  }
}

/// A warp per row: its scores, and 1 / their sum (0 where none is left).
template <class T>
__global__ void __launch_bounds__(256)
    balance_scores_kernel(matrix_view<const T, space::device> logits, double* scores, double* each) {
  wait_for_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = global_thread() / 32, experts = logits.extent[1];
  if (t >= logits.extent[0]) return;
  double sum = 0;
  for (std::int64_t e = lane; e < experts; e += 32)
    sum += scores[t * experts + e] = route_score(widened<double>(logits(t, e)));
  sum = warp_sum(sum);
  if (lane == 0) each[t] = sum > 0 ? 1 / sum : 0;
}

/// Block (sequence, 32 experts): f, and the sequence's part of the loss, expert by expert.
template <class T>
__global__ void __launch_bounds__(256)
    balance_sums_kernel(device_experts chosen, device_offsets offsets, const double* scores,
                        const double* each, std::int64_t experts, double scale, double* f, double* losses) {
  wait_for_previous_kernels();
  __shared__ double sums[8][33];
  __shared__ int loads[8][33];
  const std::int64_t b = blockIdx.x, e = std::int64_t{blockIdx.y} * 32 + threadIdx.x;
  const std::int64_t begin = offsets(b), end = offsets(b + 1), k = chosen.extent[1];
  double sum = 0;
  int load = 0;
  for (std::int64_t t = begin + threadIdx.y; e < experts && t < end; t += 8) {
    sum += scores[t * experts + e] * each[t];
    for (std::int64_t j = 0; j < k; ++j) load += chosen(t, j) == e;
  }
  sums[threadIdx.y][threadIdx.x] = sum, loads[threadIdx.y][threadIdx.x] = load;
  __syncthreads();
  if (threadIdx.y != 0 || e >= experts) return;
  for (int i = 1; i < 8; ++i) sum += sums[i][threadIdx.x], load += loads[i][threadIdx.x];
  const double length = static_cast<double>(end - begin);
  const double own =
      end > begin ? static_cast<double>(experts) / (static_cast<double>(k) * length) * load : 0;
  f[b * experts + e] = own;
  losses[b * experts + e] = end > begin ? scale * own * sum / length : 0;
}

/// A warp per row.
template <class T>
__global__ void __launch_bounds__(256)
    balance_gradient_kernel(matrix_view<const T, space::device> logits, device_offsets offsets,
                            const double* scores, const double* each, const double* f, double scale,
                            matrix_view<T, space::device> dlogits) {
  wait_for_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = global_thread() / 32, experts = logits.extent[1];
  if (t >= logits.extent[0] || !(each[t] > 0)) return;
  // The last sequence that begins at t or before.
  std::int64_t low = 0, high = offsets.extent[0] - 1;
  if (high <= 0 || t < offsets(0) || t >= offsets(high)) return;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (offsets(middle) <= t ? low : high) = middle;
  }
  f += low * experts, scores += t * experts;
  double expected = 0;
  for (std::int64_t e = lane; e < experts; e += 32) expected += f[e] * scores[e];
  expected = warp_sum(expected) * each[t];
  const double factor = scale / static_cast<double>(offsets(low + 1) - offsets(low)) * each[t];
  for (std::int64_t e = lane; e < experts; e += 32) {
    const double x = widened<double>(logits(t, e)), s = scores[e];
    const double slope = x < -30 ? s / 2 : 1 / (1 + exp(-x)) / (2 * s);
    dlogits(t, e) = narrowed<T>(widened<double>(dlogits(t, e)) + factor * (f[e] - expected) * slope);
  }
}
}  // namespace detail

template <>
struct kernel<expert_loads<space::device>, exec::cuda> {
  using op = expert_loads<space::device>;
  static void forward(const exec::cuda& p, const op::inputs& in, const op::outputs& out) {
    p.launch("expert_loads", detail::expert_loads_kernel<std::int64_t>,
             detail::loop_grid(p, in.experts.size(), 256), 256, 0, in.experts, out.loads);
  }
};

template <class T>
struct kernel<router_bias<T, space::device>, exec::cuda> {
  using op = router_bias<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("router_bias", detail::router_bias_kernel<T>, 1, 256, 0, in.loads, in.speed, out.bias);
  }
};

template <class T>
struct kernel<sequence_balance<T, space::device>, exec::cuda> {
  using op = sequence_balance<T, space::device>;
  /// Scores, what to divide them by, f, and losses.
  static std::int64_t scratch(const typename op::inputs& in) {
    return in.logits.size() + in.logits.extent[0] + 2 * (in.offsets.extent[0] - 1) * in.logits.extent[1];
  }
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double, space::device>& scratch) {
    const std::int64_t rows = in.logits.extent[0], experts = in.logits.extent[1],
                       sequences = in.offsets.extent[0] - 1;
    double *const scores = scratch.data, *const each = scores + rows * experts, *const f = each + rows,
                  *const losses = f + sequences * experts;
    const dim3 row_warps(static_cast<unsigned>(detail::ceil_div(rows, 8)));
    p.launch("sequence_balance", detail::balance_scores_kernel<T>, row_warps, 256, 0, in.logits, scores,
             each);
    p.launch("sequence_balance", detail::balance_sums_kernel<T>,
             dim3(static_cast<unsigned>(sequences), static_cast<unsigned>(detail::ceil_div(experts, 32))),
             dim3(32, 8), 0, in.experts, in.offsets, scores, each, experts, in.scale, f, losses);
    p.launch("sequence_balance", detail::add_up_kernel<double>, 1, 256, 0, losses, sequences * experts,
             out.loss.data);
    if (out.dlogits.data)
      p.launch("sequence_balance", detail::balance_gradient_kernel<T>, row_warps, 256, 0, in.logits,
               in.offsets, scores, each, f, in.scale, out.dlogits);
  }
};

}  // namespace dsv4
