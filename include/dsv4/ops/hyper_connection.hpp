// SPDX-License-Identifier: Apache-2.0
/// Manifold-constrained hyper-connections: gates, Sinkhorn, collapse and expansion of the streams.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsv4 {
/// The coefficients of one site from the projections z = fn . vec(X) (specification, section 3):
///   rho = 1 / sqrt(mean(X^2) + norm_eps) over all n D channels; h = z rho scale + base, per segment;
///   pre_i = sigmoid(h_i) + eps, post_i = 2 sigmoid(h_{n+i}), comb = sinkhorn(h_{2n + n j + k}):
///   softmax over k, + eps; divide columns by (sum_j + eps); then iters - 1 times rows, columns.
/// comb[t, j, k] takes stream j (source) to stream k (destination). A head collapse has `pre` alone: z is n
/// wide, scale has one entry, post and comb are empty.
template <class T, space S = space::host>
struct hyper_connection_gates {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> x;      // (N, n, D)
    matrix_view<const T, S> z;      // (N, (2 + n) n) or (N, n)
    vector_view<const T, S> base;   // as wide as z
    vector_view<const T, S> scale;  // (3) or (1)
    double norm_eps;
    double eps;
    int sinkhorn_iters;
  };
  struct outputs {
    matrix_view<T, S> pre;   // (N, n)
    matrix_view<T, S> post;  // (N, n) or empty
    tensor_view<T, S> comb;  // (N, n, n) or empty
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    const std::int64_t n = in.x.extent[1], segments = in.scale.extent[0];
    const std::int64_t width = segments == 3 ? (2 + n) * n : n;
    expect(segments == 1 || segments == 3, "hyper_connection_gates", "scale", "1 (collapse) or 3 entries",
           segments);
    expect_extent("hyper_connection_gates", "z width", in.z.extent[1], width);
    expect_extent("hyper_connection_gates", "z rows", in.z.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_gates", "base", in.base.extent[0], width);
    expect_extent("hyper_connection_gates", "pre rows", out.pre.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_gates", "pre width", out.pre.extent[1], n);
    detail::dispatch<hyper_connection_gates>(p, in, out);
  }
};

/// u[t, :] = sum_i pre[t, i] X[t, i, :], the sublayer's input.
template <class T, space S = space::host>
struct hyper_connection_collapse {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> x;    // (N, n, D)
    matrix_view<const T, S> pre;  // (N, n)
  };
  struct outputs {
    matrix_view<T, S> u;  // (N, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("hyper_connection_collapse", "pre width", in.pre.extent[1], in.x.extent[1]);
    expect_extent("hyper_connection_collapse", "u rows", out.u.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_collapse", "u width", out.u.extent[1], in.x.extent[2]);
    detail::dispatch<hyper_connection_collapse>(p, in, out);
  }
};

/// X'[t, k, :] = post[t, k] v[t, :] + sum_j comb[t, j, k] X[t, j, :]. X' may be X.
template <class T, space S = space::host>
struct hyper_connection_expand {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> x;     // (N, n, D)
    matrix_view<const T, S> v;     // (N, D), the sublayer's output
    matrix_view<const T, S> post;  // (N, n)
    tensor_view<const T, S> comb;  // (N, n, n)
  };
  struct outputs {
    tensor_view<T, S> x;  // (N, n, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("hyper_connection_expand", "v rows", in.v.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_expand", "v width", in.v.extent[1], in.x.extent[2]);
    expect_extent("hyper_connection_expand", "x' rows", out.x.extent[0], in.x.extent[0]);
    detail::dispatch<hyper_connection_expand>(p, in, out);
  }
};

template <class T>
struct kernel<hyper_connection_gates<T>, exec::reference> {
  using op = hyper_connection_gates<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1];
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t) {
      double squares = 0;
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t c = 0; c < in.x.extent[2]; ++c)
          squares += double(in.x(t, i, c)) * double(in.x(t, i, c));
      const double rho = 1 / std::sqrt(squares / double(n * in.x.extent[2]) + in.norm_eps);
      const auto h = [&](std::int64_t row, int segment) {
        return double(in.z(t, row)) * rho * double(in.scale(segment)) + double(in.base(row));
      };
      for (std::int64_t i = 0; i < n; ++i) out.pre(t, i) = T(sigmoid(h(i, 0)) + in.eps);
      if (in.scale.extent[0] == 1) continue;
      for (std::int64_t i = 0; i < n; ++i) out.post(t, i) = T(2 * sigmoid(h(n + i, 1)));
      std::vector<double> m(static_cast<std::size_t>(n * n));
      const auto at = [&](std::int64_t j, std::int64_t k) -> double& {
        return m[static_cast<std::size_t>(n * j + k)];
      };
      for (std::int64_t j = 0; j < n; ++j) {
        double top = h(2 * n + n * j, 2), sum = 0;
        for (std::int64_t k = 1; k < n; ++k) top = std::max(top, h(2 * n + n * j + k, 2));
        for (std::int64_t k = 0; k < n; ++k) sum += at(j, k) = std::exp(h(2 * n + n * j + k, 2) - top);
        for (std::int64_t k = 0; k < n; ++k) at(j, k) = at(j, k) / sum + in.eps;
      }
      for (int iteration = 0; iteration < in.sinkhorn_iters; ++iteration) {
        for (std::int64_t j = 0; iteration > 0 && j < n; ++j) {  // rows; the softmax was the first row pass
          double sum = in.eps;
          for (std::int64_t k = 0; k < n; ++k) sum += at(j, k);
          for (std::int64_t k = 0; k < n; ++k) at(j, k) /= sum;
        }
        for (std::int64_t k = 0; k < n; ++k) {  // columns
          double sum = in.eps;
          for (std::int64_t j = 0; j < n; ++j) sum += at(j, k);
          for (std::int64_t j = 0; j < n; ++j) at(j, k) /= sum;
        }
      }
      for (std::int64_t j = 0; j < n; ++j)
        for (std::int64_t k = 0; k < n; ++k) out.comb(t, j, k) = T(at(j, k));
    }
  }
};

template <class T>
struct kernel<hyper_connection_collapse<T>, exec::reference> {
  using op = hyper_connection_collapse<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t)
      for (std::int64_t c = 0; c < in.x.extent[2]; ++c) {
        double sum = 0;
        for (std::int64_t i = 0; i < in.x.extent[1]; ++i) sum += double(in.pre(t, i)) * double(in.x(t, i, c));
        out.u(t, c) = T(sum);
      }
  }
};

template <class T>
struct kernel<hyper_connection_expand<T>, exec::reference> {
  using op = hyper_connection_expand<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1];
    std::vector<double> mixed(static_cast<std::size_t>(n));
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t)
      for (std::int64_t c = 0; c < in.x.extent[2]; ++c) {
        for (std::int64_t k = 0; k < n; ++k) {
          double sum = double(in.post(t, k)) * double(in.v(t, c));
          for (std::int64_t j = 0; j < n; ++j) sum += double(in.comb(t, j, k)) * double(in.x(t, j, c));
          mixed[static_cast<std::size_t>(k)] = sum;
        }
        for (std::int64_t k = 0; k < n; ++k) out.x(t, k, c) = T(mixed[static_cast<std::size_t>(k)]);
      }
  }
};

template <class T>
struct kernel<hyper_connection_gates<T>, exec::cpu>;  // in ops/cpu/hyper_connection.hpp

template <class T>
struct kernel<hyper_connection_collapse<T>, exec::cpu>;  // in ops/cpu/hyper_connection.hpp

template <class T>
struct kernel<hyper_connection_expand<T>, exec::cpu>;  // in ops/cpu/hyper_connection.hpp

}  // namespace dsv4
