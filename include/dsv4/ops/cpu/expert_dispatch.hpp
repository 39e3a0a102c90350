// SPDX-License-Identifier: Apache-2.0
/// Expert dispatch on host threads: a counting sort, then rows copied in parallel.
#pragma once

#include <dsv4/ops/expert_dispatch.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsv4 {
template <class T>
struct kernel<expert_dispatch<T>, exec::cpu> {
  using op = expert_dispatch<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t k = in.experts.extent[1], pairs = out.order.extent[0],
                       experts = out.offsets.extent[0] - 1;
    const std::int64_t width = in.x.extent[1];
    std::vector<std::int64_t> next(static_cast<std::size_t>(experts + 1), 0);
    for (std::int64_t pair = 0; pair < pairs; ++pair)
      ++next[static_cast<std::size_t>(in.experts(pair / k, pair % k)) + 1];
    for (std::int64_t e = 0; e <= experts; ++e) {
      if (e > 0) next[static_cast<std::size_t>(e)] += next[static_cast<std::size_t>(e - 1)];
      out.offsets(e) = next[static_cast<std::size_t>(e)];
    }
    for (std::int64_t pair = 0; pair < pairs; ++pair)
      out.order(next[static_cast<std::size_t>(in.experts(pair / k, pair % k))]++) = pair;
    p.parallel_for(pairs, 1 + 16384 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t pair = out.order(row);
        out.weight_sorted(row) = in.weights(pair / k, pair % k);
        std::copy_n(in.x.data + pair / k * in.x.stride[0], width,
                    out.x_sorted.data + row * out.x_sorted.stride[0]);
      }
    });
  }
};

template <class T>
struct kernel<expert_combine<T>, exec::cpu> {
  using op = expert_combine<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = out.out.extent[0], width = out.out.extent[1];
    if (rows == 0) return;
    const std::int64_t k = in.order.extent[0] / rows;
    for (std::int64_t r = 0; r < in.order.extent[0]; ++r) out.inverse(in.order(r)) = r;
    p.parallel_for(rows, 1 + 8192 / (width * k + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        T* to = out.out.data + t * out.out.stride[0];
        const T* shared = in.shared.data + t * in.shared.stride[0];
        if (to != shared) std::copy_n(shared, width, to);
        for (std::int64_t j = 0; j < k; ++j) {
          const T* y = in.y.data + out.inverse(t * k + j) * in.y.stride[0];
          for (std::int64_t c = 0; c < width; ++c) to[c] += y[c];
        }
      }
    });
  }
};

}  // namespace dsv4
