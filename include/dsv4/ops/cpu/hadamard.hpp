// SPDX-License-Identifier: Apache-2.0
/// The Walsh-Hadamard transform on host threads: log2(D) butterflies per row.
#pragma once

#include <dsv4/ops/hadamard.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {
template <class T>
struct kernel<hadamard<T>, exec::cpu> {
  using op = hadamard<T>;
  static void forward(const exec::cpu& p, const typename op::inputs&, const typename op::outputs& out) {
    const std::int64_t width = out.x.extent[1];
    const T scale = T(1 / std::sqrt(double(width)));
    p.parallel_for(out.x.extent[0], 1 + 4096 / width, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        T* x = out.x.data + t * out.x.stride[0];
        for (std::int64_t half = 1; half < width; half *= 2)
          for (std::int64_t block = 0; block < width; block += 2 * half)
            for (std::int64_t i = block; i < block + half; ++i) {
              const T a = x[i], b = x[i + half];
              x[i] = a + b;
              x[i + half] = a - b;
            }
        for (std::int64_t i = 0; i < width; ++i) x[i] *= scale;
      }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t width = g.dx.extent[1];
    if (g.dx.data != up.dy.data)
      p.parallel_for(g.dx.extent[0], 1 + 16384 / width, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t)
          std::copy_n(up.dy.data + t * up.dy.stride[0], width, g.dx.data + t * g.dx.stride[0]);
      });
    forward(p, in, {g.dx});
  }
};

}  // namespace dsv4
