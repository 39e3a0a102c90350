// SPDX-License-Identifier: Apache-2.0
/// RMSNorm on host threads: eight partial sums per row, in an order that the width alone fixes.
#pragma once

#include <dsv4/ops/rms_norm.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {
namespace detail {
/// sum_i x[i]^2 with eight accumulators, so that compilers vectorise it without reassociating.
template <class T>
T sum_of_squares(const T* x, std::int64_t width) {
  T lane[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= width; i += 8)
    for (int l = 0; l < 8; ++l) lane[l] += x[i + l] * x[i + l];
  for (int l = 0; i + l < width; ++l) lane[l] += x[i + l] * x[i + l];
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}
}  // namespace detail

template <class T>
struct kernel<rms_norm<T>, exec::cpu> {
  using op = rms_norm<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.x.extent[1];
    p.parallel_for(in.x.extent[0], 1 + 16384 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* x = in.x.data + t * in.x.stride[0];
        T* y = out.y.data + t * out.y.stride[0];
        const T r = T(1) / std::sqrt(detail::sum_of_squares(x, width) / T(width) + T(in.eps));
        if (const T* weight = in.weight.data)
          for (std::int64_t i = 0; i < width; ++i) y[i] = x[i] * r * weight[i];
        else
          for (std::int64_t i = 0; i < width; ++i) y[i] = x[i] * r;
      }
    });
  }
};

}  // namespace dsv4
