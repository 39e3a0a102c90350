// SPDX-License-Identifier: Apache-2.0
/// Gated pooling on host threads: channels are lanes, tokens pass by twice.
#pragma once

#include <dsv4/ops/compress_pool.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace dsv4 {
template <class T>
struct kernel<compress_pool<T>, exec::cpu> {
  using op = compress_pool<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t m = in.bias.extent[0], width = out.y.extent[1];
    p.parallel_for(out.y.extent[0], 1 + 2048 / (m * width), [&](std::int64_t first, std::int64_t last) {
      std::vector<T> top(static_cast<std::size_t>(width)), sum(top.size());
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t start = (in.first_entry + i) * m,
                           begin = in.overlap && start > 0 ? start - m : start;
        T* y = out.y.data + i * out.y.stride[0];
        // The group's own tokens use the second half of the channels, the previous group's the first.
        const auto rows = [&](std::int64_t t) {
          const std::int64_t shift = in.overlap && t >= start ? width : 0, row = t - in.first_position;
          struct {
            const T *kv, *gate, *bias;
          } r{in.kv.data + row * in.kv.stride[0] + shift, in.gate.data + row * in.gate.stride[0] + shift,
              in.bias.data + t % m * in.bias.stride[0] + shift};
          return r;
        };
        std::fill(top.begin(), top.end(), -std::numeric_limits<T>::infinity());
        std::fill(sum.begin(), sum.end(), T(0));
        std::fill_n(y, width, T(0));
        for (std::int64_t t = begin; t < start + m; ++t) {
          const auto r = rows(t);
          for (std::int64_t f = 0; f < width; ++f) {
            const T logit = r.gate[f] + r.bias[f];
            T& high = top[static_cast<std::size_t>(f)];
            high = logit > high ? logit : high;
          }
        }
        for (std::int64_t t = begin; t < start + m; ++t) {
          const auto r = rows(t);
          for (std::int64_t f = 0; f < width; ++f) {
            const T w = std::exp(r.gate[f] + r.bias[f] - top[static_cast<std::size_t>(f)]);
            sum[static_cast<std::size_t>(f)] += w;
            y[f] += w * r.kv[f];
          }
        }
        for (std::int64_t f = 0; f < width; ++f) y[f] /= sum[static_cast<std::size_t>(f)];
      }
    });
  }
};

}  // namespace dsv4
