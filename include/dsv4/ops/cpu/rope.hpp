// SPDX-License-Identifier: Apache-2.0
/// RoPE on host threads: angles in double, once per position, shared by the heads.
#pragma once

#include <dsv4/ops/rope.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {
template <class T>
struct kernel<rope<T>, exec::cpu> {
  using op = rope<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t heads = out.x.extent[1], skip = out.x.extent[2] - 2 * in.frequencies.pairs;
    const int pairs = in.frequencies.pairs;
    p.parallel_for(
        out.x.extent[0], 1 + 1024 / (pairs * (heads + 8)), [&](std::int64_t begin, std::int64_t end) {
          T c[64], s[64];
          for (std::int64_t t = begin; t < end; ++t) {
            for (int i = 0; i < pairs; ++i) {
              const double angle = double(in.first_position + t * in.position_step) * in.frequencies.value[i];
              c[i] = T(std::cos(angle));
              s[i] = T(in.inverse ? -std::sin(angle) : std::sin(angle));
            }
            for (std::int64_t h = 0; h < heads; ++h) {
              T* x = out.x.data + t * out.x.stride[0] + h * out.x.stride[1] + skip;
              for (int i = 0; i < pairs; ++i) {
                const T e = x[2 * i], o = x[2 * i + 1];
                x[2 * i] = e * c[i] - o * s[i];
                x[2 * i + 1] = e * s[i] + o * c[i];
              }
            }
          }
        });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t heads = g.dx.extent[1], width = g.dx.extent[2];
    if (g.dx.data != up.dy.data)
      p.parallel_for(g.dx.extent[0], 1 + 16384 / (heads * width + 1),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t t = begin; t < end; ++t)
                         for (std::int64_t h = 0; h < heads; ++h)
                           std::copy_n(up.dy.data + t * up.dy.stride[0] + h * up.dy.stride[1], width,
                                       g.dx.data + t * g.dx.stride[0] + h * g.dx.stride[1]);
                     });
    auto back = in;
    back.inverse = !in.inverse;
    forward(p, back, {g.dx});
  }
};

}  // namespace dsv4
