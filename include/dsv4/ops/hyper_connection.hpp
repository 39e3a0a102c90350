// SPDX-License-Identifier: Apache-2.0
/// Manifold-constrained hyper-connections: collapse and expansion of the streams; the gates are included.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>
#include <dsv4/ops/hyper_connection_gates.hpp>

#include <cstdint>
#include <vector>

namespace dsv4 {
/// u[t, :] = sum_i pre[t, i] X[t, i, :], the sublayer's input.
/// backward: dpre[t, i] = du[t, :] . X[t, i, :];   dx[t, i, :] = pre[t, i] du[t, :].
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
  struct upstream {
    matrix_view<const T, S> du;  // (N, D)
  };
  struct gradients {
    tensor_view<T, S> dx;    // (N, n, D)
    matrix_view<T, S> dpre;  // (N, n)
    bool add_to_dx = false;  ///< residual streams have several readers
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("hyper_connection_collapse", "pre width", in.pre.extent[1], in.x.extent[1]);
    expect_extent("hyper_connection_collapse", "u rows", out.u.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_collapse", "u width", out.u.extent[1], in.x.extent[2]);
    detail::dispatch<hyper_connection_collapse>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    expect_extent("hyper_connection_collapse", "pre width", in.pre.extent[1], in.x.extent[1]);
    expect_extent("hyper_connection_collapse", "du rows", up.du.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_collapse", "du width", up.du.extent[1], in.x.extent[2]);
    detail::expect_gradient("hyper_connection_collapse", "dx", g.dx, in.x);
    detail::expect_gradient("hyper_connection_collapse", "dpre", g.dpre, in.pre);
    detail::dispatch_backward<hyper_connection_collapse>(p, w, in, up, g);
  }
};

/// X'[t, k, :] = post[t, k] v[t, :] + sum_j comb[t, j, k] X[t, j, :]. X' may be X.
/// backward, dx' being the gradient of X':
///   dv = sum_k post_k dx'_k,   dpost_k = v . dx'_k,   dcomb_jk = X_j . dx'_k,   dx_j = sum_k comb_jk dx'_k.
/// dx may be dx': what reaches X in other ways is added to it afterwards.
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
  struct upstream {
    tensor_view<const T, S> dx;  // (N, n, D), of X'
  };
  struct gradients {
    tensor_view<T, S> dx;     // (N, n, D), of X
    matrix_view<T, S> dv;     // (N, D)
    matrix_view<T, S> dpost;  // (N, n)
    tensor_view<T, S> dcomb;  // (N, n, n)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("hyper_connection_expand", "v rows", in.v.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_expand", "v width", in.v.extent[1], in.x.extent[2]);
    expect_extent("hyper_connection_expand", "x' rows", out.x.extent[0], in.x.extent[0]);
    detail::dispatch<hyper_connection_expand>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    expect_extent("hyper_connection_expand", "v rows", in.v.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_expand", "v width", in.v.extent[1], in.x.extent[2]);
    detail::expect_upstream("hyper_connection_expand", "dx'", up.dx, in.x);
    detail::expect_gradient("hyper_connection_expand", "dx", g.dx, in.x);
    detail::expect_gradient("hyper_connection_expand", "dv", g.dv, in.v);
    detail::expect_gradient("hyper_connection_expand", "dpost", g.dpost, in.post);
    detail::expect_gradient("hyper_connection_expand", "dcomb", g.dcomb, in.comb);
    detail::dispatch_backward<hyper_connection_expand>(p, w, in, up, g);
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

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t)
      for (std::int64_t i = 0; i < in.x.extent[1]; ++i) {
        double dpre = 0;
        for (std::int64_t c = 0; c < in.x.extent[2]; ++c) {
          dpre += double(up.du(t, c)) * double(in.x(t, i, c));
          if (g.dx.data)
            g.dx(t, i, c) =
                T((g.add_to_dx ? double(g.dx(t, i, c)) : 0) + double(in.pre(t, i)) * double(up.du(t, c)));
        }
        if (g.dpre.data) g.dpre(t, i) = T(dpre);
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

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    std::vector<double> dx(static_cast<std::size_t>(n));
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t) {
      for (std::int64_t k = 0; k < n; ++k) {
        double dpost = 0;
        for (std::int64_t c = 0; c < width; ++c) dpost += double(in.v(t, c)) * double(up.dx(t, k, c));
        if (g.dpost.data) g.dpost(t, k) = T(dpost);
        for (std::int64_t j = 0; j < n; ++j) {
          double dcomb = 0;
          for (std::int64_t c = 0; c < width; ++c) dcomb += double(in.x(t, j, c)) * double(up.dx(t, k, c));
          if (g.dcomb.data) g.dcomb(t, j, k) = T(dcomb);
        }
      }
      for (std::int64_t c = 0; c < width; ++c) {
        double dv = 0;
        for (std::int64_t k = 0; k < n; ++k) dv += double(in.post(t, k)) * double(up.dx(t, k, c));
        if (g.dv.data) g.dv(t, c) = T(dv);
        for (std::int64_t j = 0; j < n; ++j) {
          double& sum = dx[static_cast<std::size_t>(j)] = 0;
          for (std::int64_t k = 0; k < n; ++k) sum += double(in.comb(t, j, k)) * double(up.dx(t, k, c));
        }
        for (std::int64_t j = 0; g.dx.data && j < n; ++j) g.dx(t, j, c) = T(dx[static_cast<std::size_t>(j)]);
      }
    }
  }
};

template <class T>
struct kernel<hyper_connection_collapse<T>, exec::cpu>;  // in ops/cpu/hyper_connection.hpp

template <class T>
struct kernel<hyper_connection_expand<T>, exec::cpu>;  // in ops/cpu/hyper_connection.hpp

}  // namespace dsv4
