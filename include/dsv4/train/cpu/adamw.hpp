// SPDX-License-Identifier: Apache-2.0
/// AdamW on host threads, in the scalar type: one pass over memory.
#pragma once

#include <dsv4/train/adamw.hpp>

#include <cmath>
#include <cstdint>

namespace dsv4 {

template <class T>
struct kernel<adamw<T>, exec::cpu> {
  using op = adamw<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const adamw_options& o = in.options;
    const T scale = T(in.gradient_scale), beta1 = T(o.beta1), rest1 = T(1 - o.beta1), beta2 = T(o.beta2),
            rest2 = T(1 - o.beta2), epsilon = T(o.epsilon);
    const T keep = T(1 - in.learning_rate * o.weight_decay), rate = T(in.learning_rate / in.correction1()),
            root = T(1 / in.correction2());
    p.parallel_for(in.gradient.extent[0], 16384, [&](std::int64_t begin, std::int64_t end) {
      const T* const gradient = in.gradient.data;
      T *const weight = out.weight.data, *const first = out.first.data, *const second = out.second.data;
      for (std::int64_t i = begin; i < end; ++i) {
        const T g = scale * gradient[i];
        const T m = first[i] = beta1 * first[i] + rest1 * g;
        const T v = second[i] = beta2 * second[i] + rest2 * g * g;
        weight[i] = keep * weight[i] - rate * (m / (std::sqrt(v * root) + epsilon));
      }
    });
  }
};

}  // namespace dsv4
