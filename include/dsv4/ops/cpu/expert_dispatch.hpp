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

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    const std::int64_t k = in.experts.extent[1], pairs = kept.order.extent[0], width = g.dx.extent[1];
    workspace::scope scope(w);
    const auto inverse = w.take<std::int64_t>(pairs);
    for (std::int64_t r = 0; r < pairs; ++r) inverse(kept.order(r)) = r;
    p.parallel_for(in.experts.extent[0], 1 + 8192 / (width * k + 1),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t t = begin; t < end; ++t)
                       for (std::int64_t j = 0; j < k; ++j) {
                         const std::int64_t r = inverse(t * k + j);
                         if (g.dweights.data) g.dweights(t, j) = up.dweight_sorted(r);
                         if (!g.dx.data) continue;
                         T* dx = g.dx.data + t * g.dx.stride[0];
                         const T* from = up.dx_sorted.data + r * up.dx_sorted.stride[0];
                         if (j == 0)
                           std::copy_n(from, width, dx);
                         else
                           for (std::int64_t c = 0; c < width; ++c) dx[c] += from[c];
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

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dout.extent[0], width = up.dout.extent[1];
    if (rows == 0) return;
    const std::int64_t k = in.order.extent[0] / rows;
    p.parallel_for(in.order.extent[0], 1 + 16384 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        std::copy_n(up.dout.data + in.order(r) / k * up.dout.stride[0], width,
                    g.dy.data + r * g.dy.stride[0]);
    });
  }
};

}  // namespace dsv4
