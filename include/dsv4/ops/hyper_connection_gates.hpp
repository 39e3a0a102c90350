// SPDX-License-Identifier: Apache-2.0
/// The coefficients of manifold-constrained hyper-connections: gates and Sinkhorn.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsv4 {
/// The coefficients of one site from the projections z = fn . vec(X) (docs/blocks/hyper-connections.md):
///   rho = 1 / sqrt(mean(X^2) + norm_eps) over all n D channels; h = z rho scale + base, per segment;
///   pre_i = sigmoid(h_i) + eps, post_i = 2 sigmoid(h_{n+i}), comb = sinkhorn(h_{2n + n j + k}):
///   softmax over k, + eps; divide columns by (sum_j + eps); then iters - 1 times rows, columns.
/// comb[t, j, k] takes stream j (source) to stream k (destination). A head collapse has `pre` alone: z is n
/// wide, scale has one entry, post and comb are empty.
/// backward, with s_i = sigmoid(h_i) and mix = z rho:
///   dh_i = dpre_i s_i (1 - s_i),   dh_{n+i} = 2 dpost_i s_{n+i} (1 - s_{n+i}),
///   dh_{2n+..}: back through every normalisation Y = Z / kappa, dZ = (dY - sum(dY Y)) / kappa with the sum
///   that made kappa, last one first, then through the softmax;
///   dbase += sum_t dh,   dscale += sum_t sum_{segment} dh mix,   dz = rho scale dh,
///   dx = -x rho^3 / (n D) sum(scale dh z).
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
  struct upstream {
    matrix_view<const T, S> dpre;   // (N, n)
    matrix_view<const T, S> dpost;  // (N, n) or empty
    tensor_view<const T, S> dcomb;  // (N, n, n) or empty
  };
  struct gradients {
    tensor_view<T, S> dx;      // (N, n, D)
    matrix_view<T, S> dz;      // like z
    vector_view<T, S> dbase;   // like base
    vector_view<T, S> dscale;  // like scale
    bool add_to_dx = false;    ///< residual streams have several readers
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    check(in);
    expect_extent("hyper_connection_gates", "pre rows", out.pre.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_gates", "pre width", out.pre.extent[1], in.x.extent[1]);
    detail::dispatch<hyper_connection_gates>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    check(in);
    const std::int64_t rows = in.x.extent[0], n = in.x.extent[1];
    expect_extent("hyper_connection_gates", "dpre rows", up.dpre.extent[0], rows);
    expect_extent("hyper_connection_gates", "dpre width", up.dpre.extent[1], n);
    if (in.scale.extent[0] == 3) {
      expect_extent("hyper_connection_gates", "dpost rows", up.dpost.extent[0], rows);
      expect_extent("hyper_connection_gates", "dpost width", up.dpost.extent[1], n);
      expect_extent("hyper_connection_gates", "dcomb rows", up.dcomb.extent[0], rows);
      expect_extent("hyper_connection_gates", "dcomb streams", up.dcomb.extent[1], n);
    }
    detail::expect_gradient("hyper_connection_gates", "dx", g.dx, in.x);
    detail::expect_gradient("hyper_connection_gates", "dz", g.dz, in.z);
    detail::expect_gradient("hyper_connection_gates", "dbase", g.dbase, in.base);
    detail::expect_gradient("hyper_connection_gates", "dscale", g.dscale, in.scale);
    detail::dispatch_backward<hyper_connection_gates>(p, w, in, up, g);
  }

 private:
  static void check(const inputs& in) {
    const std::int64_t n = in.x.extent[1], segments = in.scale.extent[0];
    const std::int64_t width = segments == 3 ? (2 + n) * n : n;
    expect(segments == 1 || segments == 3, "hyper_connection_gates", "scale", "1 (collapse) or 3 entries",
           segments);
    expect_extent("hyper_connection_gates", "z width", in.z.extent[1], width);
    expect_extent("hyper_connection_gates", "z rows", in.z.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_gates", "base", in.base.extent[0], width);
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

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t n = in.x.extent[1], mixes = in.z.extent[1], channels = in.x.extent[2];
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const auto segment = [&](std::int64_t row) { return row < n ? 0 : row < 2 * n ? 1 : 2; };
    std::vector<double> dbase(static_cast<std::size_t>(mixes), 0.0), dscale(3, 0.0), dh(dbase.size());
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t) {
      double squares = 0;
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t c = 0; c < channels; ++c) squares += double(in.x(t, i, c)) * double(in.x(t, i, c));
      const double rho = 1 / std::sqrt(squares / double(n * channels) + in.norm_eps);
      const auto h = [&](std::int64_t row) {
        return double(in.z(t, row)) * rho * double(in.scale(segment(row))) + double(in.base(row));
      };
      for (std::int64_t i = 0; i < n; ++i) {
        const double s = sigmoid(h(i));
        dh[static_cast<std::size_t>(i)] = double(up.dpre(t, i)) * s * (1 - s);
        if (in.scale.extent[0] == 1) continue;
        const double p = sigmoid(h(n + i));
        dh[static_cast<std::size_t>(n + i)] = 2 * double(up.dpost(t, i)) * p * (1 - p);
      }
      if (in.scale.extent[0] == 3) sinkhorn_backward(in, up, t, h, dh.data() + 2 * n);

      double along = 0;  // sum over rows of scale dh z
      for (std::int64_t row = 0; row < mixes; ++row) {
        const double own = dh[static_cast<std::size_t>(row)], z = double(in.z(t, row));
        const double scaled = own * double(in.scale(segment(row)));
        dbase[static_cast<std::size_t>(row)] += own;
        dscale[static_cast<std::size_t>(segment(row))] += own * z * rho;
        along += scaled * z;
        if (g.dz.data) g.dz(t, row) = T(rho * scaled);
      }
      const double factor = -along * rho * rho * rho / double(n * channels);
      for (std::int64_t i = 0; g.dx.data && i < n; ++i)
        for (std::int64_t c = 0; c < channels; ++c)
          g.dx(t, i, c) = T((g.add_to_dx ? double(g.dx(t, i, c)) : 0) + factor * double(in.x(t, i, c)));
    }
    for (std::int64_t row = 0; row < g.dbase.extent[0]; ++row)
      g.dbase(row) = T(double(g.dbase(row)) + dbase[static_cast<std::size_t>(row)]);
    for (std::int64_t s = 0; s < g.dscale.extent[0]; ++s)
      g.dscale(s) = T(double(g.dscale(s)) + dscale[static_cast<std::size_t>(s)]);
  }

 private:
  /// The gradient of h (n n) by that of comb.
  template <class H>
  static void sinkhorn_backward(const typename op::inputs& in, const typename op::upstream& up,
                                std::int64_t t, const H& h, double* dh) {
    const std::int64_t n = in.x.extent[1];
    using square = std::vector<double>;
    const auto at = [&](square& m, bool by_column, std::int64_t a, std::int64_t b) -> double& {
      return m[static_cast<std::size_t>(by_column ? n * b + a : n * a + b)];
    };
    square softmax(static_cast<std::size_t>(n * n));
    for (std::int64_t j = 0; j < n; ++j) {
      double top = h(2 * n + n * j), sum = 0;
      for (std::int64_t k = 1; k < n; ++k) top = std::max(top, h(2 * n + n * j + k));
      for (std::int64_t k = 0; k < n; ++k)
        sum += at(softmax, false, j, k) = std::exp(h(2 * n + n * j + k) - top);
      for (std::int64_t k = 0; k < n; ++k) at(softmax, false, j, k) /= sum;
    }
    // Every normalisation leaves its output and its divisors; they alternate, columns first and last.
    std::vector<square> outputs, divisors;
    square m = softmax;
    for (double& v : m) v += in.eps;
    for (int step = 0; step < 2 * in.sinkhorn_iters - 1; ++step) {
      square kappa(static_cast<std::size_t>(n), in.eps);
      for (std::int64_t a = 0; a < n; ++a) {
        for (std::int64_t b = 0; b < n; ++b) kappa[static_cast<std::size_t>(a)] += at(m, step % 2 == 0, a, b);
        for (std::int64_t b = 0; b < n; ++b) at(m, step % 2 == 0, a, b) /= kappa[static_cast<std::size_t>(a)];
      }
      outputs.push_back(m), divisors.push_back(kappa);
    }
    square d(static_cast<std::size_t>(n * n));
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t k = 0; k < n; ++k) at(d, false, j, k) = double(up.dcomb(t, j, k));
    for (int step = 2 * in.sinkhorn_iters - 2; step >= 0; --step)
      for (std::int64_t a = 0; a < n; ++a) {
        auto& y = outputs[static_cast<std::size_t>(step)];
        double sum = 0;
        for (std::int64_t b = 0; b < n; ++b) sum += at(d, step % 2 == 0, a, b) * at(y, step % 2 == 0, a, b);
        for (std::int64_t b = 0; b < n; ++b) {
          double& v = at(d, step % 2 == 0, a, b);
          v = (v - sum) / divisors[static_cast<std::size_t>(step)][static_cast<std::size_t>(a)];
        }
      }
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < n; ++k) sum += at(d, false, j, k) * at(softmax, false, j, k);
      for (std::int64_t k = 0; k < n; ++k)
        dh[n * j + k] = at(softmax, false, j, k) * (at(d, false, j, k) - sum);
    }
  }
};

template <class T>
struct kernel<hyper_connection_gates<T>, exec::cpu>;  // in ops/cpu/hyper_connection_gates.hpp

}  // namespace dsv4
