// SPDX-License-Identifier: Apache-2.0
/// Clamped SwiGLU, with the routing weight.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

#include <algorithm>
#include <cmath>

namespace dsv4 {
/// h[r, i] = silu(min(gate[r, i], limit)) clip(up[r, i], -limit, limit) row_weight[r]; row_weight is 1 when
/// empty (the shared expert). The gate has no lower clamp. The clamp comes before the product, the weight
/// before the down-projection (specification, section 8). h may be gate.
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

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("swiglu", "up rows", in.up.extent[0], in.gate.extent[0]);
    expect_extent("swiglu", "up width", in.up.extent[1], in.gate.extent[1]);
    if (in.row_weight.data) expect_extent("swiglu", "row_weight", in.row_weight.extent[0], in.gate.extent[0]);
    expect_extent("swiglu", "h rows", out.h.extent[0], in.gate.extent[0]);
    expect_extent("swiglu", "h width", out.h.extent[1], in.gate.extent[1]);
    detail::dispatch<swiglu>(p, in, out);
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
};

template <class T>
struct kernel<swiglu<T>, exec::cpu>;  // in ops/cpu/swiglu.hpp

}  // namespace dsv4
