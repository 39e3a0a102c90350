// SPDX-License-Identifier: Apache-2.0
/// One residual site: streams in, sublayer, streams out; and the final collapse to one stream.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/hyper_connection.hpp>
#include <dsv4/ops/hyper_connection_fold.hpp>
#include <dsv4/ops/rms_norm.hpp>

#include <cstdint>

namespace dsv4 {

template <class T, space S = space::host>
struct hyper_connection_parameters {
  matrix_view<T, S> fn;     // ((2 + n) n, n D), or (n, n D) for a collapse
  vector_view<T, S> base;   // ((2 + n) n) or (n)
  vector_view<T, S> scale;  // (3) or (1)
};

/// What a site keeps from its forward pass, in memory that the caller owns; the streams that enter it are the
/// caller's anyhow. Coefficients are cheaper to do again from z than to keep.
template <class T, space S = space::host>
struct hyper_connection_context {
  matrix_view<T, S> z;  // (N, (2 + n) n), or (N, n) of a collapse
  matrix_view<T, S> v;  // (N, D), the sublayer's output; empty of a collapse

  template <class Memory>
  static hyper_connection_context take(Memory& memory, const hyper_connection_config& h, std::int64_t rows,
                                       std::int64_t width) {
    using dsv4::take;
    return {take<T>(memory, rows, h.mixes()), take<T>(memory, rows, width)};
  }
  template <class Memory>
  static hyper_connection_context take_collapse(Memory& memory, const hyper_connection_config& h,
                                                std::int64_t rows) {
    using dsv4::take;
    return {take<T>(memory, rows, h.hc_mult), {}};
  }
};

namespace detail {
/// The coefficients of a site, from its streams and their projections z.
template <hyper_connection_config H, class T, space S = space::host>
struct site_coefficients {
  matrix_view<T, S> pre, post;  // (N, n)
  tensor_view<T, S> comb;       // (N, n, n)

  template <policy P>
  site_coefficients(const P& p, basic_workspace<S>& w, const hyper_connection_parameters<T, S>& parameters,
                    double norm_eps, tensor_view<const T, S> x, matrix_view<const T, S> z)
      : pre(take<T>(w, x.extent[0], H.hc_mult)),
        post(take<T>(w, x.extent[0], H.hc_mult)),
        comb(take<T>(w, x.extent[0], H.hc_mult, H.hc_mult)) {
    hyper_connection_gates<T, S>::forward(
        p, {x, z, parameters.base, parameters.scale, norm_eps, H.hc_eps, H.hc_sinkhorn_iters},
        {pre, post, comb});
  }
};

/// The inputs of a site's fold, or with 0 iterations those of a head's.
template <hyper_connection_config H, class T, space S>
typename hyper_connection_fold<T, S>::inputs fold_inputs(const hyper_connection_parameters<T, S>& parameters,
                                                         vector_view<const T, S> norm, double norm_eps,
                                                         tensor_view<const T, S> x,
                                                         int iterations = H.hc_sinkhorn_iters) {
  return {x, parameters.fn, parameters.base, parameters.scale, norm, norm_eps, H.hc_eps, iterations};
}
}  // namespace detail

/// X' = post F(norm(sum_i pre_i X_i)) + comb^T X (docs/blocks/hyper-connections.md). `sublayer(x, y)`
/// computes y (N, D) from the normalised x (N, D). X' may be X. `keep` may be empty.
template <hyper_connection_config H, class T, space S, policy P, class Sublayer>
void hyper_connection_site(const P& p, basic_workspace<S>& w,
                           const hyper_connection_parameters<T, S>& parameters, vector_view<const T, S> norm,
                           double norm_eps, tensor_view<const T, S> x, tensor_view<T, S> next,
                           const hyper_connection_context<T, S>& keep, const Sublayer& sublayer) {
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "hyper_connection_site");
  const std::int64_t rows = x.extent[0], n = H.hc_mult, width = x.extent[2];
  const auto z = keep.z.data ? keep.z : take<T>(w, rows, H.mixes());
  const auto u = take<T>(w, rows, width), v = keep.v.data ? keep.v : take<T>(w, rows, width);
  const auto post = take<T>(w, rows, n);
  const auto comb = take<T>(w, rows, n, n);
  hyper_connection_fold<T, S>::forward(p, w, detail::fold_inputs<H>(parameters, norm, norm_eps, x),
                                       {u, post, comb}, {z, {}, {}});
  sublayer(matrix_view<const T, S>(u), v);
  hyper_connection_expand<T, S>::forward(p, {x, v, post, comb}, {next});
}

/// The same in place, for inference.
template <hyper_connection_config H, class T, space S, policy P, class Sublayer>
void hyper_connection_site(const P& p, basic_workspace<S>& w,
                           const hyper_connection_parameters<T, S>& parameters, vector_view<const T, S> norm,
                           double norm_eps, tensor_view<T, S> x, const Sublayer& sublayer) {
  hyper_connection_site<H, T, S>(p, w, parameters, norm, norm_eps, tensor_view<const T, S>(x), x, {},
                                 sublayer);
}

/// X' once more from X and what the site kept, without its sublayer.
template <hyper_connection_config H, class T, space S, policy P>
void hyper_connection_replay(const P& p, basic_workspace<S>& w,
                             const hyper_connection_parameters<T, S>& parameters, double norm_eps,
                             tensor_view<const T, S> x, const hyper_connection_context<T, S>& kept,
                             tensor_view<T, S> next) {
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "hyper_connection_replay");
  const detail::site_coefficients<H, T, S> c(p, w, parameters, norm_eps, x, kept.z);
  hyper_connection_expand<T, S>::forward(p, {x, kept.v, c.post, c.comb}, {next});
}

/// The input y of a site's sublayer once more, from X and what the site kept: y = norm(sum_i pre_i X_i).
template <hyper_connection_config H, class T, space S, policy P>
void hyper_connection_input(const P& p, basic_workspace<S>& w,
                            const hyper_connection_parameters<T, S>& parameters, vector_view<const T, S> norm,
                            double norm_eps, tensor_view<const T, S> x,
                            const hyper_connection_context<T, S>& kept, matrix_view<T, S> y) {
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "hyper_connection_input");
  const detail::site_coefficients<H, T, S> c(p, w, parameters, norm_eps, x, kept.z);
  hyper_connection_collapse<T, S>::forward(p, {x, c.pre}, {y});
  rms_norm<T, S>::forward(p, {y, norm, norm_eps}, {y});
}

/// The backward of a site. `dx` comes as the gradient of X' and leaves as that of X; parameters' gradients
/// and `dnorm` are added to. `sublayer(u, dv, du)` is the backward of the sublayer, whose input was u: it
/// overwrites du.
template <hyper_connection_config H, class T, space S, policy P, class Sublayer>
void hyper_connection_site_backward(const P& p, basic_workspace<S>& w,
                                    const hyper_connection_parameters<T, S>& parameters,
                                    vector_view<const T, S> norm, double norm_eps, tensor_view<const T, S> x,
                                    const hyper_connection_context<T, S>& kept, tensor_view<T, S> dx,
                                    const hyper_connection_parameters<T, S>& gradients,
                                    vector_view<T, S> dnorm, const Sublayer& sublayer) {
  using fold = hyper_connection_fold<T, S>;
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "hyper_connection_site_backward");
  const std::int64_t rows = x.extent[0], n = H.hc_mult, width = x.extent[2];
  const auto u = take<T>(w, rows, width), dv = take<T>(w, rows, width), du = take<T>(w, rows, width);
  const auto dpost = take<T>(w, rows, n);
  const auto dcomb = take<T>(w, rows, n, n);
  // One kernel makes pre and the sum again as it goes, and takes dx only once all of it is known.
  constexpr bool at_once = has_fused_kernel<fold, P>;
  const auto pre = at_once ? matrix_view<T, S>() : take<T>(w, rows, n);
  const auto sum = at_once ? matrix_view<T, S>() : take<T>(w, rows, width);
  const tensor_view<T, S> none;

  const auto in = detail::fold_inputs<H>(parameters, norm, norm_eps, x);
  hyper_connection_reopen<T, S>::forward(p, w, {in, kept.z, kept.v, dx},
                                         {u, dv, dpost, dcomb, at_once ? none : dx, pre, sum});
  sublayer(matrix_view<const T, S>(u), matrix_view<const T, S>(dv), du);
  fold::backward(p, w, in, {kept.z, pre, sum}, {du, dpost, dcomb, at_once ? dx : none},
                 {dx, gradients.fn, gradients.base, gradients.scale, dnorm, !at_once});
}

/// y = norm(sum_i pre_i X_i) with coefficients of its own: after the last layer, and after MTP.
template <hyper_connection_config H, class T, space S, policy P>
void hyper_connection_head(const P& p, basic_workspace<S>& w,
                           const hyper_connection_parameters<T, S>& parameters, vector_view<const T, S> norm,
                           double norm_eps, tensor_view<const T, S> x, matrix_view<T, S> y,
                           const hyper_connection_context<T, S>& keep = {}) {
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "hyper_connection_head");
  const std::int64_t rows = x.extent[0], n = H.hc_mult;
  const auto z = keep.z.data ? keep.z : take<T>(w, rows, n);
  hyper_connection_fold<T, S>::forward(p, w, detail::fold_inputs<H>(parameters, norm, norm_eps, x, 0),
                                       {y, {}, {}}, {z, {}, {}});
}

/// The backward of the collapse: dx = the gradient of the streams, or += with `add_to_dx`.
template <hyper_connection_config H, class T, space S, policy P>
void hyper_connection_head_backward(const P& p, basic_workspace<S>& w,
                                    const hyper_connection_parameters<T, S>& parameters,
                                    vector_view<const T, S> norm, double norm_eps, tensor_view<const T, S> x,
                                    const hyper_connection_context<T, S>& kept, matrix_view<const T, S> dy,
                                    tensor_view<T, S> dx, bool add_to_dx,
                                    const hyper_connection_parameters<T, S>& gradients,
                                    vector_view<T, S> dnorm) {
  const auto range = detail::named_range(p, "hyper_connection_head_backward");
  hyper_connection_fold<T, S>::backward(
      p, w, detail::fold_inputs<H>(parameters, norm, norm_eps, x, 0), {kept.z, {}, {}}, {dy, {}, {}, {}},
      {dx, gradients.fn, gradients.base, gradients.scale, dnorm, add_to_dx});
}

}  // namespace dsv4
