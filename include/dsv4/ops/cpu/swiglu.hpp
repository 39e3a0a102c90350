// SPDX-License-Identifier: Apache-2.0
/// Clamped SwiGLU on host threads, block by block of a row.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
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
    const auto& kernels = detail::best_kernels<T>();
    p.parallel_for(in.gate.extent[0], 1 + 8192 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* gate = in.gate.data + r * in.gate.stride[0];
        const T* up = in.up.data + r * in.up.stride[0];
        T* h = out.h.data + r * out.h.stride[0];
        const T weight = in.row_weight.data ? in.row_weight(r) : T(1);
        T g[block], s[block];
        for (std::int64_t i0 = 0; i0 < width; i0 += block) {
          const std::int64_t count = std::min(block, width - i0);
          for (std::int64_t i = 0; i < count; ++i) g[i] = std::min(gate[i0 + i], limit);
          kernels.sigmoid(g, s, count);
          for (std::int64_t i = 0; i < count; ++i) h[i0 + i] = g[i] * s[i] * clip(up[i0 + i], limit) * weight;
        }
      }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t width = in.gate.extent[1];
    const T limit = T(in.limit);
    const auto& kernels = detail::best_kernels<T>();
    p.parallel_for(in.gate.extent[0], 1 + 8192 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* gate = in.gate.data + r * in.gate.stride[0];
        const T* linear = in.up.data + r * in.up.stride[0];
        const T* dh = up.dh.data + r * up.dh.stride[0];
        T* dgate = g.dgate.data ? g.dgate.data + r * g.dgate.stride[0] : nullptr;
        T* dup = g.dup.data ? g.dup.data + r * g.dup.stride[0] : nullptr;
        const T weight = in.row_weight.data ? in.row_weight(r) : T(1);
        T a[block], s[block], d[block], u[block], slope[block], along[8] = {};
        for (std::int64_t i0 = 0; i0 < width; i0 += block) {
          const std::int64_t count = std::min(block, width - i0);
          std::copy_n(dh + i0, count, d);  // dgate may be dh
          for (std::int64_t i = 0; i < count; ++i) a[i] = std::min(gate[i0 + i], limit);
          kernels.sigmoid(a, s, count);
          for (std::int64_t i = 0; i < count; ++i) u[i] = clip(linear[i0 + i], limit);
          std::int64_t i = 0;
          for (; i + 8 <= count; i += 8)
            for (int l = 0; l < 8; ++l) along[l] += d[i + l] * a[i + l] * s[i + l] * u[i + l];
          for (int l = 0; i + l < count; ++l) along[l] += d[i + l] * a[i + l] * s[i + l] * u[i + l];
          // Products first, choices after: as one loop GCC would branch, not select.
          if (dgate) {
            for (i = 0; i < count; ++i)
              slope[i] = d[i] * weight * u[i] * s[i] * (T(1) + a[i] * (T(1) - s[i]));
            for (i = 0; i < count; ++i) dgate[i0 + i] = gate[i0 + i] <= limit ? slope[i] : T(0);
          }
          if (dup) {
            for (i = 0; i < count; ++i) slope[i] = d[i] * weight * a[i] * s[i];
            for (i = 0; i < count; ++i) dup[i0 + i] = std::abs(linear[i0 + i]) <= limit ? slope[i] : T(0);
          }
        }
        if (g.drow_weight.data)
          g.drow_weight(r) = ((along[0] + along[4]) + (along[1] + along[5])) +
                             ((along[2] + along[6]) + (along[3] + along[7]));
      }
    });
  }

 private:
  static constexpr std::int64_t block = 256;  ///< channels at a time

  /// A NaN stays.
  static T clip(T x, T limit) { return std::max(std::min(x, limit), -limit); }
};
}  // namespace dsv4
