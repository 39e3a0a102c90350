// SPDX-License-Identifier: Apache-2.0
/// The element-wise passes of on-policy distillation on host threads, by rows, with the vector exponential.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/train/opd_loss.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4 {
namespace detail {
/// Columns that are turned into powers at a time, on the stack.
inline constexpr std::int64_t opd_block = 256;

/// The dot product of two rows with eight accumulators.
template <class T>
T row_dot(const T* a, const T* b, std::int64_t n) {
  T lane[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) lane[l] += a[i + l] * b[i + l];
  for (int l = 0; i + l < n; ++l) lane[l] += a[i + l] * b[i + l];
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}
}  // namespace detail

template <class T>
struct kernel<opd_accumulate<T>, exec::cpu> {
  using op = opd_accumulate<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1];
    p.parallel_for(in.x.extent[0], 1 + 4096 / (n + 1), [&](std::int64_t begin, std::int64_t end) {
      T power[detail::opd_block];
      for (std::int64_t t = begin; t < end; ++t) {
        const T* const x = in.x.data + t * in.x.stride[0];
        T* const m = out.m.data + t * out.m.stride[0];
        if (in.weight.data) {
          const T weight = in.weight(t);
          for (std::int64_t v = 0; v < n; ++v) m[v] += weight * x[v];
        }
        if (!out.statistics.data) continue;
        opd_statistics<T>& s = out.statistics(t);
        for (std::int64_t v = 0; v < n; v += detail::opd_block) {
          const std::int64_t some = std::min(detail::opd_block, n - v);
          std::copy_n(x + v, some, power);
          const T old = detail::best_kernels<T>().softmax_step(power, some, T(1), s.top, s.sum);
          if (in.weight.data) continue;  // a teacher's: only its normalisation is wanted
          s.sum_x = s.sum_x * old + detail::row_dot(power, x + v, some);
          s.sum_m = s.sum_m * old + detail::row_dot(power, m + v, some);
        }
      }
    });
  }
};

template <class T>
struct kernel<opd_gradient<T>, exec::cpu> {
  using op = opd_gradient<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = out.x.extent[1];
    p.parallel_for(out.x.extent[0], 1 + 4096 / (n + 1), [&](std::int64_t begin, std::int64_t end) {
      T power[detail::opd_block];
      for (std::int64_t t = begin; t < end; ++t) {
        T* const x = out.x.data + t * out.x.stride[0];
        const T* const m = in.m.data + t * in.m.stride[0];
        const T lse = in.lse(t), w = in.w(t), c = in.c(t), loss = in.loss(t), scale = in.scale;
        for (std::int64_t v = 0; v < n; v += detail::opd_block) {
          const std::int64_t some = std::min(detail::opd_block, n - v);
          std::copy_n(x + v, some, power);
          T top = lse, sum = 0;  // no logit is above lse
          detail::best_kernels<T>().softmax_step(power, some, T(1), top, sum);
          for (std::int64_t i = 0; i < some; ++i)
            x[v + i] = scale * power[i] * (w * (x[v + i] - lse) - (m[v + i] - c) - loss);
        }
      }
    });
  }
};

}  // namespace dsv4
