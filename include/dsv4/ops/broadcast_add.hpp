// SPDX-License-Identifier: Apache-2.0
/// Adds one row to every residual stream of a token.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

namespace dsv4 {
/// x[t, i, :] += e[t, :] for every stream i: joins the next token's embedding in the multi-token-prediction
/// block.
template <class T, space S = space::host>
struct broadcast_add {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> e;  // (N, D)
  };
  struct outputs {
    tensor_view<T, S> x;  // (N, n, D), read and written
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("broadcast_add", "x rows", out.x.extent[0], in.e.extent[0]);
    expect_extent("broadcast_add", "x width", out.x.extent[2], in.e.extent[1]);
    detail::dispatch<broadcast_add>(p, in, out);
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
};

/// One short pass over memory, once per draft: nothing to win over the reference.
template <class T>
struct kernel<broadcast_add<T>, exec::cpu> : kernel<broadcast_add<T>, exec::reference> {};

}  // namespace dsv4
