// SPDX-License-Identifier: Apache-2.0
/// Clamped SwiGLU, with the routing weight.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>

namespace dsv4 {
/// h[r, i] = silu(min(gate[r, i], limit)) clip(up[r, i], -limit, limit) row_weight[r]; row_weight is 1 when
/// empty (the shared expert). The gate has no lower clamp. The clamp comes before the product, the weight
/// before the down-projection (docs/blocks/moe.md). h may be gate.
/// backward, with a = min(gate, limit), b = clip(up), s = sigmoid(a), w = row_weight:
///   dgate = [gate <= limit] dh w b s (1 + a (1 - s)),   dup = [|up| <= limit] dh w a s,
///   drow_weight = sum_i dh a s b.   At the limit itself the gradient flows. dgate may be dh.
template <class T, space S = space::host>
struct swiglu {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> gate;        // (R, I)
    matrix_view<const T, S> up;          // (R, I)
    vector_view<const T, S> row_weight;  // (R) or empty
    double limit;
  };
  struct outputs {
    matrix_view<T, S> h;  // (R, I)
  };
  struct upstream {
    matrix_view<const T, S> dh;  // (R, I)
  };
  struct gradients {
    matrix_view<T, S> dgate;        // (R, I)
    matrix_view<T, S> dup;          // (R, I)
    vector_view<T, S> drow_weight;  // (R)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("swiglu", "up rows", in.up.extent[0], in.gate.extent[0]);
    expect_extent("swiglu", "up width", in.up.extent[1], in.gate.extent[1]);
    if (in.row_weight.data) expect_extent("swiglu", "row_weight", in.row_weight.extent[0], in.gate.extent[0]);
    expect_extent("swiglu", "h rows", out.h.extent[0], in.gate.extent[0]);
    expect_extent("swiglu", "h width", out.h.extent[1], in.gate.extent[1]);
    detail::dispatch<swiglu>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    detail::expect_upstream("swiglu", "up", in.up, in.gate);
    if (in.row_weight.data) expect_extent("swiglu", "row_weight", in.row_weight.extent[0], in.gate.extent[0]);
    detail::expect_upstream("swiglu", "dh", up.dh, in.gate);
    detail::expect_gradient("swiglu", "dgate", g.dgate, in.gate);
    detail::expect_gradient("swiglu", "dup", g.dup, in.gate);
    detail::expect_gradient("swiglu", "drow_weight", g.drow_weight, in.row_weight);
    detail::dispatch_backward<swiglu>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<swiglu<T>, exec::reference> {
  using op = swiglu<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t r = 0; r < in.gate.extent[0]; ++r)
      for (std::int64_t i = 0; i < in.gate.extent[1]; ++i) {
        const double g = std::min(double(in.gate(r, i)), in.limit);
        const double u = std::clamp(double(in.up(r, i)), -in.limit, in.limit);
        out.h(r, i) = T(g / (1 + std::exp(-g)) * u * (in.row_weight.data ? double(in.row_weight(r)) : 1.0));
      }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t r = 0; r < in.gate.extent[0]; ++r) {
      const double w = in.row_weight.data ? double(in.row_weight(r)) : 1.0;
      double drow_weight = 0;
      for (std::int64_t i = 0; i < in.gate.extent[1]; ++i) {
        const double gate = double(in.gate(r, i)), linear = double(in.up(r, i)), dh = double(up.dh(r, i));
        const double a = std::min(gate, in.limit), b = std::clamp(linear, -in.limit, in.limit);
        const double s = 1 / (1 + std::exp(-a));
        drow_weight += dh * a * s * b;
        if (g.dgate.data) g.dgate(r, i) = T(gate <= in.limit ? dh * w * b * s * (1 + a * (1 - s)) : 0);
        if (g.dup.data) g.dup(r, i) = T(std::abs(linear) <= in.limit ? dh * w * a * s : 0);
      }
      if (g.drow_weight.data) g.drow_weight(r) = T(drow_weight);
    }
  }
};

template <class T>
struct kernel<swiglu<T>, exec::cpu>;  // in ops/cpu/swiglu.hpp

}  // namespace dsv4
