// SPDX-License-Identifier: Apache-2.0
/// Root-mean-square normalisation, weighted or not.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <cmath>
#include <vector>

namespace dsv4 {
/// y[t, i] = w[i] x[t, i] / sqrt(mean_i x[t, i]^2 + eps); w = 1 when `weight` is empty (the per-head query
/// norm). Statistics in at least float. y may be x.
/// backward, with r = 1 / sqrt(mean_i x^2 + eps) and g = dy w, per row:
///   dx = r (g - x r^2 mean_i(g x)),   dweight += sum_t dy x r.   dx may be dy.
template <class T, space S = space::host>
struct rms_norm {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> x;       // (N, D)
    vector_view<const T, S> weight;  // (D) or empty
    double eps;
  };
  struct outputs {
    matrix_view<T, S> y;  // (N, D)
  };
  struct upstream {
    matrix_view<const T, S> dy;  // (N, D)
  };
  struct gradients {
    matrix_view<T, S> dx;       // (N, D)
    vector_view<T, S> dweight;  // (D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    if (in.weight.data) expect_extent("rms_norm", "weight", in.weight.extent[0], in.x.extent[1]);
    expect_extent("rms_norm", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("rms_norm", "y columns", out.y.extent[1], in.x.extent[1]);
    detail::dispatch<rms_norm>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    if (in.weight.data) expect_extent("rms_norm", "weight", in.weight.extent[0], in.x.extent[1]);
    detail::expect_upstream("rms_norm", "dy", up.dy, in.x);
    detail::expect_gradient("rms_norm", "dx", g.dx, in.x);
    detail::expect_gradient("rms_norm", "dweight", g.dweight, in.weight);
    detail::dispatch_backward<rms_norm>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<rms_norm<T>, exec::reference> {
  using op = rms_norm<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.x.extent[1];
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t) {
      double squares = 0;
      for (std::int64_t i = 0; i < width; ++i) squares += double(in.x(t, i)) * double(in.x(t, i));
      const double r = 1 / std::sqrt(squares / double(width) + in.eps);
      for (std::int64_t i = 0; i < width; ++i)
        out.y(t, i) = T(double(in.x(t, i)) * r * (in.weight.data ? double(in.weight(i)) : 1.0));
    }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t width = in.x.extent[1];
    std::vector<double> dweight(static_cast<std::size_t>(width), 0.0);
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t) {
      const auto x = [&](std::int64_t i) { return double(in.x(t, i)); };
      const auto gy = [&](std::int64_t i) {
        return double(up.dy(t, i)) * (in.weight.data ? double(in.weight(i)) : 1.0);
      };
      double squares = 0, dot = 0;
      for (std::int64_t i = 0; i < width; ++i) squares += x(i) * x(i), dot += gy(i) * x(i);
      const double r = 1 / std::sqrt(squares / double(width) + in.eps);
      for (std::int64_t i = 0; i < width; ++i) {
        dweight[static_cast<std::size_t>(i)] += double(up.dy(t, i)) * x(i) * r;
        if (g.dx.data) g.dx(t, i) = T(r * (gy(i) - x(i) * r * r * dot / double(width)));
      }
    }
    if (g.dweight.data)
      for (std::int64_t i = 0; i < width; ++i)
        g.dweight(i) = T(double(g.dweight(i)) + dweight[static_cast<std::size_t>(i)]);
  }
};

template <class T>
struct kernel<rms_norm<T>, exec::cpu>;  // in ops/cpu/rms_norm.hpp

}  // namespace dsv4
