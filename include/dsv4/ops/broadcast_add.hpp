// SPDX-License-Identifier: Apache-2.0
/// Adds one row to every residual stream of a token.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

namespace dsv4 {
/// x[t, i, :] += e[t, :] for every stream i: joins the next token's embedding in the multi-token-prediction
/// block. With one stream it is a plain sum of two matrices.
/// backward: de[t, :] = sum_i dy[t, i, :], dy being the gradient of the new x; that of the old x is dy
/// itself.
template <class T, space S = space::host>
struct broadcast_add {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> e;  // (N, D)
  };
  struct outputs {
    tensor_view<T, S> x;  // (N, n, D), read and written
  };
  struct upstream {
    tensor_view<const T, S> dy;  // (N, n, D)
  };
  struct gradients {
    matrix_view<T, S> de;  // (N, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("broadcast_add", "x rows", out.x.extent[0], in.e.extent[0]);
    expect_extent("broadcast_add", "x width", out.x.extent[2], in.e.extent[1]);
    detail::dispatch<broadcast_add>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    if (!g.de.data) return;
    expect_extent("broadcast_add", "de rows", g.de.extent[0], up.dy.extent[0]);
    expect_extent("broadcast_add", "de width", g.de.extent[1], up.dy.extent[2]);
    detail::dispatch_backward<broadcast_add>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<broadcast_add<T>, exec::reference> {
  using op = broadcast_add<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t)
      for (std::int64_t i = 0; i < out.x.extent[1]; ++i)
        for (std::int64_t c = 0; c < out.x.extent[2]; ++c)
          out.x(t, i, c) = T(double(out.x(t, i, c)) + double(in.e(t, c)));
  }

  static void backward(const auto&, workspace&, const typename op::inputs&, const typename op::upstream& up,
                       const typename op::gradients& g) {
    for (std::int64_t t = 0; t < up.dy.extent[0]; ++t)
      for (std::int64_t c = 0; c < up.dy.extent[2]; ++c) {
        double sum = 0;
        for (std::int64_t i = 0; i < up.dy.extent[1]; ++i) sum += double(up.dy(t, i, c));
        g.de(t, c) = T(sum);
      }
  }
};

template <class T>
struct kernel<broadcast_add<T>, exec::cpu>;  // in ops/cpu/broadcast_add.hpp

}  // namespace dsv4
