// SPDX-License-Identifier: Apache-2.0
/// All of a residual site before its sublayer, forward, backward and once more: rows of other ops, which a
/// policy may have kernels of its own for.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/ops/backward.hpp>
#include <dsv4/ops/hyper_connection.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/rms_norm.hpp>

#include <cstdint>

namespace dsv4 {

/// u = norm(sum_i pre_i X_i) with the coefficients pre, post, comb of z = fn . vec(X): `linear`,
/// `hyper_connection_gates`, `hyper_connection_collapse`, `rms_norm`, in this order. A collapse has `pre`
/// alone, as in `hyper_connection_gates`.
/// backward: that of these ops, last one first. With `dnext`, the gradient of X' = post v + comb^T X, also of
/// this way to X: dx_j = sum_k comb_jk dx'_k + ...; dx may be dnext.
template <class T, space S = space::host>
struct hyper_connection_fold {
  static constexpr space memory = S;
  static constexpr bool composed = true;  ///< of other ops, where a policy has no kernel of its own
  struct inputs {
    tensor_view<const T, S> x;      // (N, n, D)
    matrix_view<const T, S> fn;     // ((2 + n) n, n D) or (n, n D)
    vector_view<const T, S> base;   // ((2 + n) n) or (n)
    vector_view<const T, S> scale;  // (3) or (1)
    vector_view<const T, S> norm;   // (D)
    double norm_eps;
    double eps;
    int sinkhorn_iters;
  };
  struct outputs {
    matrix_view<T, S> u;     // (N, D)
    matrix_view<T, S> post;  // (N, n) or empty
    tensor_view<T, S> comb;  // (N, n, n) or empty
  };
  /// z is kept. What else backward reads is made again from it, or given.
  struct saved {
    matrix_view<T, S> z;    // (N, (2 + n) n) or (N, n)
    matrix_view<T, S> pre;  // (N, n), may be empty
    matrix_view<T, S> sum;  // (N, D), before the norm, may be empty
  };
  struct upstream {
    matrix_view<const T, S> du;     // (N, D)
    matrix_view<const T, S> dpost;  // (N, n) or empty
    tensor_view<const T, S> dcomb;  // (N, n, n) or empty
    tensor_view<const T, S> dnext;  // (N, n, D), of X', or empty
  };
  struct gradients {
    tensor_view<T, S> dx;      // (N, n, D)
    matrix_view<T, S> dfn;     // like fn
    vector_view<T, S> dbase;   // like base
    vector_view<T, S> dscale;  // like scale
    vector_view<T, S> dnorm;   // (D)
    bool add_to_dx = false;    ///< residual streams have several readers; not with dnext
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out,
                      const saved& save) {
    check(in, save);
    expect_extent("hyper_connection_fold", "u rows", out.u.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_fold", "u width", out.u.extent[1], in.x.extent[2]);
    detail::dispatch_composed<hyper_connection_fold>(p, w, in, out, save);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const saved& kept,
                       const upstream& up, const gradients& g) {
    check(in, kept);
    expect_extent("hyper_connection_fold", "du rows", up.du.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_fold", "du width", up.du.extent[1], in.x.extent[2]);
    if (up.dnext.data) detail::expect_upstream("hyper_connection_fold", "dnext", up.dnext, in.x);
    expect(!up.dnext.data || !g.add_to_dx, "hyper_connection_fold", "add_to_dx", "false where there is dnext",
           1);
    detail::expect_gradient("hyper_connection_fold", "dx", g.dx, in.x);
    detail::expect_gradient("hyper_connection_fold", "dfn", g.dfn, in.fn);
    detail::expect_gradient("hyper_connection_fold", "dbase", g.dbase, in.base);
    detail::expect_gradient("hyper_connection_fold", "dscale", g.dscale, in.scale);
    detail::expect_gradient("hyper_connection_fold", "dnorm", g.dnorm, in.norm);
    if constexpr (has_fused_kernel<hyper_connection_fold, P>)
      detail::dispatch_backward<hyper_connection_fold>(p, w, in, kept, up, g);
    else
      backward_by_ops(p, w, in, kept, up, g);
  }

  /// The rows of ops themselves.
  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out,
                     const saved& save) {
    const workspace_scope scope(w);
    const std::int64_t rows = in.x.extent[0], n = in.x.extent[1];
    const auto pre = save.pre.data ? save.pre : take<T>(w, rows, n);
    const auto sum = save.sum.data ? save.sum : out.u;
    linear<T, S>::forward(p, {in.x.reshape(rows, n * in.x.extent[2]), in.fn}, {save.z});
    hyper_connection_gates<T, S>::forward(p, gates(in, save.z), {pre, out.post, out.comb});
    hyper_connection_collapse<T, S>::forward(p, {in.x, pre}, {sum});
    rms_norm<T, S>::forward(p, {sum, in.norm, in.norm_eps}, {out.u});
  }

  template <policy P>
  static void backward_by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const saved& kept,
                              const upstream& up, const gradients& g) {
    const workspace_scope scope(w);
    const std::int64_t rows = in.x.extent[0], n = in.x.extent[1], width = in.x.extent[2];
    auto pre = kept.pre, sum = kept.sum;
    matrix_view<T, S> post;
    tensor_view<T, S> comb;
    if (!pre.data || !sum.data || up.dnext.data) {
      pre = take<T>(w, rows, n), sum = take<T>(w, rows, width);
      if (in.scale.extent[0] == 3) post = take<T>(w, rows, n), comb = take<T>(w, rows, n, n);
      hyper_connection_gates<T, S>::forward(p, gates(in, kept.z), {pre, post, comb});
      hyper_connection_collapse<T, S>::forward(p, {in.x, pre}, {sum});
    }
    const auto dsum = take<T>(w, rows, width);
    const auto dpre = take<T>(w, rows, n), dz = take<T>(w, rows, kept.z.extent[1]);
    if (up.dnext.data && g.dx.data)  // v makes dpost alone, which nobody asks for here
      hyper_connection_expand<T, S>::backward(p, w, {in.x, sum, post, comb}, {up.dnext}, {g.dx, {}, {}, {}});
    rms_norm<T, S>::backward(p, w, {sum, in.norm, in.norm_eps}, {up.du}, {dsum, g.dnorm});
    hyper_connection_collapse<T, S>::backward(p, w, {in.x, pre}, {dsum},
                                              {g.dx, dpre, g.add_to_dx || up.dnext.data != nullptr});
    hyper_connection_gates<T, S>::backward(p, w, gates(in, kept.z), {dpre, up.dpost, up.dcomb},
                                           {g.dx, dz, g.dbase, g.dscale, true});
    linear<T, S>::backward(p, w, {in.x.reshape(rows, n * width), in.fn}, {dz},
                           {g.dx.data ? g.dx.reshape(rows, n * width) : matrix_view<T, S>(), g.dfn, true});
  }

  static typename hyper_connection_gates<T, S>::inputs gates(const inputs& in, matrix_view<const T, S> z) {
    return {in.x, z, in.base, in.scale, in.norm_eps, in.eps, in.sinkhorn_iters};
  }

 private:
  static void check(const inputs& in, const saved& s) {
    const std::int64_t n = in.x.extent[1], width = in.scale.extent[0] == 3 ? (2 + n) * n : n;
    expect_extent("hyper_connection_fold", "fn rows", in.fn.extent[0], width);
    expect_extent("hyper_connection_fold", "fn columns", in.fn.extent[1], n * in.x.extent[2]);
    expect_extent("hyper_connection_fold", "base", in.base.extent[0], width);
    expect_extent("hyper_connection_fold", "norm", in.norm.extent[0], in.x.extent[2]);
    expect_extent("hyper_connection_fold", "z rows", s.z.extent[0], in.x.extent[0]);
    expect_extent("hyper_connection_fold", "z width", s.z.extent[1], width);
  }
};

/// What the backward pass of a site begins with: u once more, from X and z, and the backward of
/// X' = post v + comb^T X: `hyper_connection_gates`, `hyper_connection_collapse`, `rms_norm`, then
/// `hyper_connection_expand` backward. Of its results all but u, dv, dpost and dcomb may be empty.
template <class T, space S = space::host>
struct hyper_connection_reopen {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    typename hyper_connection_fold<T, S>::inputs fold;  // with post and comb
    matrix_view<const T, S> z;                          // (N, (2 + n) n)
    matrix_view<const T, S> v;                          // (N, D)
    tensor_view<const T, S> dnext;                      // (N, n, D), the gradient of X'
  };
  struct outputs {
    matrix_view<T, S> u;      // (N, D)
    matrix_view<T, S> dv;     // (N, D)
    matrix_view<T, S> dpost;  // (N, n)
    tensor_view<T, S> dcomb;  // (N, n, n)
    tensor_view<T, S> dx;     // (N, n, D), dx_j = sum_k comb_jk dx'_k; may be dnext
    matrix_view<T, S> pre;    // (N, n)
    matrix_view<T, S> sum;    // (N, D), before the norm
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const std::int64_t rows = in.fold.x.extent[0], width = in.fold.x.extent[2];
    expect(in.fold.scale.extent[0] == 3, "hyper_connection_reopen", "scale", "3 entries",
           in.fold.scale.extent[0]);
    expect_extent("hyper_connection_reopen", "norm", in.fold.norm.extent[0], width);
    expect_extent("hyper_connection_reopen", "z rows", in.z.extent[0], rows);
    expect_extent("hyper_connection_reopen", "z width", in.z.extent[1], in.fold.base.extent[0]);
    expect_extent("hyper_connection_reopen", "v rows", in.v.extent[0], rows);
    expect_extent("hyper_connection_reopen", "v width", in.v.extent[1], width);
    expect_extent("hyper_connection_reopen", "u rows", out.u.extent[0], rows);
    expect_extent("hyper_connection_reopen", "u width", out.u.extent[1], width);
    detail::expect_upstream("hyper_connection_reopen", "dnext", in.dnext, in.fold.x);
    detail::expect_gradient("hyper_connection_reopen", "dx", out.dx, in.fold.x);
    detail::dispatch_composed<hyper_connection_reopen>(p, w, in, out);
  }

  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const workspace_scope scope(w);
    const std::int64_t rows = in.fold.x.extent[0], n = in.fold.x.extent[1];
    const auto pre = out.pre.data ? out.pre : take<T>(w, rows, n), post = take<T>(w, rows, n);
    const auto comb = take<T>(w, rows, n, n);
    const auto sum = out.sum.data ? out.sum : out.u;
    hyper_connection_gates<T, S>::forward(p, hyper_connection_fold<T, S>::gates(in.fold, in.z),
                                          {pre, post, comb});
    hyper_connection_collapse<T, S>::forward(p, {in.fold.x, pre}, {sum});
    rms_norm<T, S>::forward(p, {sum, in.fold.norm, in.fold.norm_eps}, {out.u});
    hyper_connection_expand<T, S>::backward(p, w, {in.fold.x, in.v, post, comb}, {in.dnext},
                                            {out.dx, out.dv, out.dpost, out.dcomb});
  }
};

}  // namespace dsv4
