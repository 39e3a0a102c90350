// SPDX-License-Identifier: Apache-2.0
/// Token embedding, copied to every residual stream.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/ops/backward.hpp>

#include <vector>

namespace dsv4 {
/// x[t, i, :] = table[tokens[t], :] for each of the n streams i (docs/blocks/hyper-connections.md).
/// The table may be stored narrower (`W`). Throws contract_error when a token id is outside [0, V).
/// backward: dtable[v, :] += sum_{t: tokens[t] = v} sum_i dx[t, i, :], in the order of t, then i.
template <class T, space S = space::host, class W = T>
struct embedding {
  static constexpr space memory = S;
  struct inputs {
    vector_view<const std::int32_t, S> tokens;  // (N)
    matrix_view<const W, S> table;              // (V, D)
  };
  struct outputs {
    tensor_view<T, S> x;  // (N, n, D)
  };
  struct upstream {
    tensor_view<const T, S> dx;  // (N, n, D)
  };
  struct gradients {
    matrix_view<T, S> dtable;  // (V, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("embedding", "x rows", out.x.extent[0], in.tokens.extent[0]);
    expect_extent("embedding", "x width", out.x.extent[2], in.table.extent[1]);
    detail::dispatch<embedding>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    if (!g.dtable.data) return;
    expect_extent("embedding", "dx rows", up.dx.extent[0], in.tokens.extent[0]);
    expect_extent("embedding", "dx width", up.dx.extent[2], in.table.extent[1]);
    detail::expect_gradient("embedding", "dtable", g.dtable, in.table);
    detail::dispatch_backward<embedding>(p, w, in, up, g);
  }

  /// tokens[t], which must be a row of the table.
  static std::int64_t checked_token(const inputs& in, std::int64_t t) {
    const std::int64_t id = in.tokens(t);
    expect(id >= 0 && id < in.table.extent[0], "embedding", numbered{"tokens[", t, "]"},
           numbered{"a token id from 0 to ", in.table.extent[0] - 1}, id);
    return id;
  }
};

template <class T, class W>
struct kernel<embedding<T, space::host, W>, exec::reference> {
  using op = embedding<T, space::host, W>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t) {
      const std::int64_t id = op::checked_token(in, t);
      for (std::int64_t i = 0; i < out.x.extent[1]; ++i)
        for (std::int64_t c = 0; c < out.x.extent[2]; ++c) out.x(t, i, c) = T(widen(in.table(id, c)));
    }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t c = 0; c < g.dtable.extent[1]; ++c) {
      std::vector<double> sum(static_cast<std::size_t>(g.dtable.extent[0]), 0.0);
      for (std::int64_t t = 0; t < up.dx.extent[0]; ++t)
        for (std::int64_t i = 0; i < up.dx.extent[1]; ++i)
          sum[static_cast<std::size_t>(op::checked_token(in, t))] += double(up.dx(t, i, c));
      for (std::int64_t v = 0; v < g.dtable.extent[0]; ++v)
        g.dtable(v, c) = T(double(g.dtable(v, c)) + sum[static_cast<std::size_t>(v)]);
    }
  }
};

template <class T, class W>
struct kernel<embedding<T, space::host, W>, exec::cpu>;  // in ops/cpu/embedding.hpp

}  // namespace dsv4
