// SPDX-License-Identifier: Apache-2.0
/// The element-wise passes of on-policy distillation on the GPU: a block per row, sums in an order that
/// depends on the tile's width alone.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/train/opd_loss.hpp>

#include <cstdint>
#include <type_traits>

namespace dsv4 {

namespace detail {
template <class T>
__global__ void __launch_bounds__(256)
    opd_accumulate_kernel(matrix_view<const T, space::device> x, vector_view<const T, space::device> weights,
                          matrix_view<T, space::device> m,
                          vector_view<opd_statistics<T>, space::device> statistics) {
  wait_for_previous_kernels();
  __shared__ T tops[8], partial[8];
  const std::int64_t t = blockIdx.x, n = x.extent[1];
  const bool teacher = weights.data != nullptr;
  if (teacher) {
    const T weight = weights(t);
    for (std::int64_t v = threadIdx.x; v < n; v += 256) m(t, v) += weight * x(t, v);
  }
  if (!statistics.data) return;
  const opd_statistics<T> before = statistics(t);
  T top = before.top;
  for (std::int64_t v = threadIdx.x; v < n; v += 256) top = x(t, v) > top ? x(t, v) : top;
  top = warp_max(top);
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
  __syncthreads();
  for (int i = 0; i < 8; ++i) top = tops[i] > top ? tops[i] : top;
  T sum = 0, sum_x = 0, sum_m = 0;
  for (std::int64_t v = threadIdx.x; v < n; v += 256) {
    const T e = exp(x(t, v) - top);
    sum += e;
    if (!teacher)
      sum_x += e * x(t, v), sum_m += e * m(t, v);  // of a teacher only the normalisation is wanted
  }
  sum = block_sum(sum, partial);
  if (!teacher) sum_x = block_sum(sum_x, partial), sum_m = block_sum(sum_m, partial);
  if (threadIdx.x > 0) return;
  const T old = before.top == top ? T(1) : exp(before.top - top);
  opd_statistics<T>& s = statistics(t);
  s.top = top;
  s.sum = before.sum * old + sum;
  if (!teacher) s.sum_x = before.sum_x * old + sum_x, s.sum_m = before.sum_m * old + sum_m;
}

template <class T>
__global__ void __launch_bounds__(256)
    opd_divergence_kernel(vector_view<const opd_statistics<T>, space::device> student,
                          matrix_view<const opd_statistics<T>, space::device> teachers,
                          matrix_view<const T, space::device> weights,
                          typename opd_divergence<T, space::device>::outputs out) {
  wait_for_previous_kernels();
  const std::int64_t t = global_thread();
  if (t >= student.extent[0]) return;
  T weight = 0, shift = 0;
  for (std::int64_t i = 0; i < weights.extent[0]; ++i) {
    const T own = weights(i, t);
    weight += own;
    if (own != 0) shift += own * (teachers(i, t).top + log(teachers(i, t).sum));
  }
  const opd_statistics<T> s = student(t);
  const T lse = s.top + log(s.sum);
  out.lse(t) = lse, out.w(t) = weight, out.c(t) = shift;
  out.losses(t) = weight * (s.sum_x / s.sum - lse) - (s.sum_m / s.sum - shift);
}

template <class T>
__global__ void __launch_bounds__(256)
    opd_gradient_kernel(typename opd_gradient<T, space::device>::inputs in, matrix_view<T, space::device> x) {
  wait_for_previous_kernels();
  const std::int64_t t = blockIdx.x;
  const T lse = in.lse(t), w = in.w(t), c = in.c(t), loss = in.loss(t);
  for (std::int64_t v = threadIdx.x; v < x.extent[1]; v += 256) {
    const T lp = x(t, v) - lse;
    x(t, v) = in.scale * exp(lp) * (w * lp - (in.m(t, v) - c) - loss);
  }
}
}  // namespace detail

template <class T>
struct kernel<opd_accumulate<T, space::device>, exec::cuda> {
  static_assert(std::is_floating_point_v<T>, "dsv4: distillation's sums are in float or double");
  using op = opd_accumulate<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("opd_accumulate", detail::opd_accumulate_kernel<T>, dim3(static_cast<unsigned>(in.x.extent[0])),
             256, 0, in.x, in.weight, out.m, out.statistics);
  }
};

template <class T>
struct kernel<opd_divergence<T, space::device>, exec::cuda> {
  using op = opd_divergence<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("opd_divergence", detail::opd_divergence_kernel<T>,
             dim3(static_cast<unsigned>(detail::ceil_div(in.student.extent[0], 256))), 256, 0, in.student,
             in.teachers, in.weights, out);
  }
};

template <class T>
struct kernel<opd_gradient<T, space::device>, exec::cuda> {
  using op = opd_gradient<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("opd_gradient", detail::opd_gradient_kernel<T>, dim3(static_cast<unsigned>(out.x.extent[0])),
             256, 0, in, out.x);
  }
};

}  // namespace dsv4
