// SPDX-License-Identifier: Apache-2.0
/// AdamW on the GPU, in the scalar type: one pass over memory.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/train/adamw.hpp>

#include <cstdint>

namespace dsv4 {

namespace detail {
/// The constants of one step, as on the host.
template <class T>
struct adamw_step {
  T scale, beta1, rest1, beta2, rest2, epsilon, keep, rate, root;
};

template <class T>
__global__ void __launch_bounds__(256)
    adamw_kernel(adamw_step<T> s, std::int64_t count, const T* gradient, T* weight, T* first, T* second) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < count; i += global_threads()) {
    const T g = s.scale * gradient[i];
    const T a = first[i] = s.beta1 * first[i] + s.rest1 * g;
    const T b = second[i] = s.beta2 * second[i] + s.rest2 * (g * g);
    weight[i] = s.keep * weight[i] - s.rate * (a / (sqrt(s.root * b) + s.epsilon));
  }
}
}  // namespace detail

template <class T>
struct kernel<adamw<T, space::device>, exec::cuda> {
  using op = adamw<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const adamw_options& o = in.options;
    const detail::adamw_step<T> step{T(in.gradient_scale),
                                     T(o.beta1),
                                     T(1 - o.beta1),
                                     T(o.beta2),
                                     T(1 - o.beta2),
                                     T(o.epsilon),
                                     T(1 - in.learning_rate * o.weight_decay),
                                     T(in.learning_rate / in.correction1()),
                                     T(1 / in.correction2())};
    const std::int64_t count = in.gradient.extent[0];
    p.launch("adamw", detail::adamw_kernel<T>, detail::loop_grid(p, count, 256), 256, 0, step, count,
             in.gradient.data, out.weight.data, out.first.data, out.second.data);
  }
};

}  // namespace dsv4
