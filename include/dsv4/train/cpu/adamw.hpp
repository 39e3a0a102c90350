// SPDX-License-Identifier: Apache-2.0
/// AdamW on host threads, in the scalar type: one pass over memory.
#pragma once

#include <dsv4/tensor/eigen.hpp>
#include <dsv4/train/adamw.hpp>
#include <dsv4/train/cpu/pieces.hpp>

#include <algorithm>
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
    detail::for_each_piece(
        p, 1, in.gradient.extent[0], [&](std::int64_t, std::int64_t piece, std::int64_t end) {
          constexpr std::int64_t most = 128;  // in turn, so that all four arrays come as streams
          for (std::int64_t begin = piece; begin < end; begin += most) {
            const std::int64_t n = std::min(most, end - begin);
            // Memory is the limit, and its own look-ahead too short for so many streams.
            for (const T* array :
                 {in.gradient.data, static_cast<const T*>(out.weight.data),
                  static_cast<const T*>(out.first.data), static_cast<const T*>(out.second.data)})
              for (std::int64_t i = 0; i < most; i += 64 / std::int64_t{sizeof(T)})
                __builtin_prefetch(array + begin + 4 * most + i);
            const auto gradient = as_eigen(in.gradient.columns(begin, n)).array();
            auto weight = as_eigen(out.weight.columns(begin, n)).array(),
                 first = as_eigen(out.first.columns(begin, n)).array(),
                 second = as_eigen(out.second.columns(begin, n)).array();
            first = beta1 * first + rest1 * scale * gradient;
            second = beta2 * second + rest2 * (scale * gradient).square();
            weight = keep * weight - rate * (first / ((root * second).sqrt() + epsilon));
          }
        });
  }
};

}  // namespace dsv4
