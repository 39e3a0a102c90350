// SPDX-License-Identifier: Apache-2.0
/// The broadcast sum on host threads.
#pragma once

#include <dsv4/ops/broadcast_add.hpp>

#include <cstdint>

namespace dsv4 {
template <class T>
struct kernel<broadcast_add<T>, exec::cpu> {
  using op = broadcast_add<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = out.x.extent[1], width = out.x.extent[2];
    p.parallel_for(out.x.extent[0], 1 + 16384 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t)
        for (std::int64_t i = 0; i < n; ++i) {
          const T* e = in.e.data + t * in.e.stride[0];
          T* x = out.x.data + t * out.x.stride[0] + i * out.x.stride[1];
          for (std::int64_t c = 0; c < width; ++c) x[c] += e[c];
        }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs&,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t n = up.dy.extent[1], width = up.dy.extent[2];
    p.parallel_for(up.dy.extent[0], 1 + 16384 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        T* de = g.de.data + t * g.de.stride[0];
        for (std::int64_t i = 0; i < n; ++i) {
          const T* dy = up.dy.data + t * up.dy.stride[0] + i * up.dy.stride[1];
          if (i == 0)
            for (std::int64_t c = 0; c < width; ++c) de[c] = dy[c];
          else
            for (std::int64_t c = 0; c < width; ++c) de[c] += dy[c];
        }
      }
    });
  }
};

}  // namespace dsv4
