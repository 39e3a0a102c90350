// SPDX-License-Identifier: Apache-2.0
/// Clamped SwiGLU on host threads.
#pragma once

#include <dsv4/ops/swiglu.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {
template <class T>
struct kernel<swiglu<T>, exec::cpu> {
  using op = swiglu<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.gate.extent[1];
    const T limit = T(in.limit);
    p.parallel_for(in.gate.extent[0], 1 + 2048 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* gate = in.gate.data + r * in.gate.stride[0];
        const T* up = in.up.data + r * in.up.stride[0];
        T* h = out.h.data + r * out.h.stride[0];
        const T weight = in.row_weight.data ? in.row_weight(r) : T(1);
        for (std::int64_t i = 0; i < width; ++i) {
          const T g = std::min(gate[i], limit), u = std::clamp(up[i], -limit, limit);
          h[i] = g / (T(1) + std::exp(-g)) * u * weight;
        }
      }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t width = in.gate.extent[1];
    const T limit = T(in.limit);
    p.parallel_for(in.gate.extent[0], 1 + 2048 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* gate = in.gate.data + r * in.gate.stride[0];
        const T* linear = in.up.data + r * in.up.stride[0];
        const T* dh = up.dh.data + r * up.dh.stride[0];
        T* dgate = g.dgate.data ? g.dgate.data + r * g.dgate.stride[0] : nullptr;
        T* dup = g.dup.data ? g.dup.data + r * g.dup.stride[0] : nullptr;
        const T weight = in.row_weight.data ? in.row_weight(r) : T(1);
        T drow_weight = 0;
        for (std::int64_t i = 0; i < width; ++i) {
          const T a = std::min(gate[i], limit), b = std::clamp(linear[i], -limit, limit), d = dh[i];
          const T s = T(1) / (T(1) + std::exp(-a));
          drow_weight += d * a * s * b;
          if (dgate) dgate[i] = gate[i] <= limit ? d * weight * b * s * (T(1) + a * (T(1) - s)) : T(0);
          if (dup) dup[i] = std::abs(linear[i]) <= limit ? d * weight * a * s : T(0);
        }
        if (g.drow_weight.data) g.drow_weight(r) = drow_weight;
      }
    });
  }
};

}  // namespace dsv4
