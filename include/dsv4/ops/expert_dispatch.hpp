// SPDX-License-Identifier: Apache-2.0
/// Sends token rows to their experts and brings the results back.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <vector>

namespace dsv4 {
/// Sorts the N k (token, slot) pairs by expert, stably: row r of `x_sorted` is the token of pair order[r] = t
/// k + j. offsets[e] is the first row of expert e.
/// backward: dx[t, :] = sum_j dx_sorted[row of pair (t, j), :], slots in ascending order;
/// dweights[t, j] = dweight_sorted[row of pair (t, j)].
template <class T, space S = space::host>
struct expert_dispatch {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> x;                   // (N, D)
    matrix_view<const std::int32_t, S> experts;  // (N, k)
    matrix_view<const T, S> weights;             // (N, k)
  };
  struct outputs {
    vector_view<std::int64_t, S> offsets;  // (E + 1)
    vector_view<std::int64_t, S> order;    // (N k)
    matrix_view<T, S> x_sorted;            // (N k, D)
    vector_view<T, S> weight_sorted;       // (N k)
  };
  struct saved {
    vector_view<const std::int64_t, S> order;  // (N k), forward's output: sorting again would read it all
  };
  struct upstream {
    matrix_view<const T, S> dx_sorted;       // (N k, D)
    vector_view<const T, S> dweight_sorted;  // (N k), may be empty with dweights
  };
  struct gradients {
    matrix_view<T, S> dx;        // (N, D)
    matrix_view<T, S> dweights;  // (N, k)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    const std::int64_t pairs = in.experts.extent[0] * in.experts.extent[1];
    expect_extent("expert_dispatch", "order", out.order.extent[0], pairs);
    expect_extent("expert_dispatch", "x_sorted rows", out.x_sorted.extent[0], pairs);
    expect_extent("expert_dispatch", "weight_sorted", out.weight_sorted.extent[0], pairs);
    detail::dispatch<expert_dispatch>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const saved& kept,
                       const upstream& up, const gradients& g) {
    const std::int64_t pairs = in.experts.extent[0] * in.experts.extent[1];
    expect_extent("expert_dispatch", "order", kept.order.extent[0], pairs);
    detail::expect_gradient("expert_dispatch", "dx", g.dx, in.x);
    detail::expect_gradient("expert_dispatch", "dweights", g.dweights, in.weights);
    if (g.dx.data) {
      expect_extent("expert_dispatch", "dx_sorted rows", up.dx_sorted.extent[0], pairs);
      expect_extent("expert_dispatch", "dx_sorted width", up.dx_sorted.extent[1], in.x.extent[1]);
    }
    if (g.dweights.data)
      expect_extent("expert_dispatch", "dweight_sorted", up.dweight_sorted.extent[0], pairs);
    detail::dispatch_backward<expert_dispatch>(p, w, in, kept, up, g);
  }
};

/// out[t, :] = shared[t, :] + sum_j y[row of pair (t, j), :], slots in ascending order. out may be shared.
/// backward: dy[row of pair (t, j), :] = dout[t, :]; the gradient of shared is dout itself.
template <class T, space S = space::host>
struct expert_combine {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> y;                 // (N k, D), sorted by expert
    vector_view<const std::int64_t, S> order;  // (N k)
    matrix_view<const T, S> shared;            // (N, D)
  };
  struct outputs {
    matrix_view<T, S> out;                 // (N, D)
    vector_view<std::int64_t, S> inverse;  // (N k), scratch: row of each pair
  };
  struct upstream {
    matrix_view<const T, S> dout;  // (N, D)
  };
  struct gradients {
    matrix_view<T, S> dy;  // (N k, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("expert_combine", "order", in.order.extent[0], in.y.extent[0]);
    expect_extent("expert_combine", "inverse", out.inverse.extent[0], in.y.extent[0]);
    expect_extent("expert_combine", "out rows", out.out.extent[0], in.shared.extent[0]);
    expect_extent("expert_combine", "out width", out.out.extent[1], in.y.extent[1]);
    detail::dispatch<expert_combine>(p, in, out);
  }

  /// Of the inputs only `order` is read.
  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    if (!g.dy.data) return;
    expect_extent("expert_combine", "dy rows", g.dy.extent[0], in.order.extent[0]);
    expect_extent("expert_combine", "dy width", g.dy.extent[1], up.dout.extent[1]);
    detail::dispatch_backward<expert_combine>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<expert_dispatch<T>, exec::reference> {
  using op = expert_dispatch<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t k = in.experts.extent[1], pairs = out.order.extent[0];
    std::int64_t row = 0;
    for (std::int64_t e = 0; e + 1 < out.offsets.extent[0]; ++e) {
      out.offsets(e) = row;
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        if (in.experts(pair / k, pair % k) != e) continue;
        out.order(row) = pair;
        out.weight_sorted(row) = in.weights(pair / k, pair % k);
        for (std::int64_t c = 0; c < in.x.extent[1]; ++c) out.x_sorted(row, c) = in.x(pair / k, c);
        ++row;
      }
    }
    out.offsets(out.offsets.extent[0] - 1) = row;
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in, const typename op::saved& kept,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t k = in.experts.extent[1], pairs = kept.order.extent[0];
    std::vector<std::int64_t> row(static_cast<std::size_t>(pairs));
    for (std::int64_t r = 0; r < pairs; ++r) row[static_cast<std::size_t>(kept.order(r))] = r;
    for (std::int64_t t = 0; t < in.experts.extent[0]; ++t) {
      const auto of = [&](std::int64_t j) { return row[static_cast<std::size_t>(t * k + j)]; };
      for (std::int64_t c = 0; c < g.dx.extent[1]; ++c) {
        double sum = 0;
        for (std::int64_t j = 0; j < k; ++j) sum += double(up.dx_sorted(of(j), c));
        g.dx(t, c) = T(sum);
      }
      if (g.dweights.data)
        for (std::int64_t j = 0; j < k; ++j) g.dweights(t, j) = up.dweight_sorted(of(j));
    }
  }
};

template <class T>
struct kernel<expert_combine<T>, exec::reference> {
  using op = expert_combine<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = out.out.extent[0], k = rows ? in.order.extent[0] / rows : 0;
    for (std::int64_t r = 0; r < in.order.extent[0]; ++r) out.inverse(in.order(r)) = r;
    for (std::int64_t t = 0; t < rows; ++t)
      for (std::int64_t c = 0; c < out.out.extent[1]; ++c) {
        double sum = double(in.shared(t, c));
        for (std::int64_t j = 0; j < k; ++j) sum += double(in.y(out.inverse(t * k + j), c));
        out.out(t, c) = T(sum);
      }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dout.extent[0], k = rows ? in.order.extent[0] / rows : 0;
    for (std::int64_t r = 0; r < in.order.extent[0]; ++r)
      for (std::int64_t c = 0; c < g.dy.extent[1]; ++c) g.dy(r, c) = up.dout(in.order(r) / k, c);
  }
};

template <class T>
struct kernel<expert_dispatch<T>, exec::cpu>;  // in ops/cpu/expert_dispatch.hpp

template <class T>
struct kernel<expert_combine<T>, exec::cpu>;  // in ops/cpu/expert_dispatch.hpp

}  // namespace dsv4
