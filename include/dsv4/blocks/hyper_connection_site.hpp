// SPDX-License-Identifier: Apache-2.0
/// One residual site: streams in, sublayer, streams out; and the final collapse to one stream.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/hyper_connection.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/rms_norm.hpp>

namespace dsv4 {

template <class T, space S = space::host>
struct hyper_connection_parameters {
  matrix_view<T, S> fn;     // ((2 + n) n, n D), or (n, n D) for a collapse
  vector_view<T, S> base;   // ((2 + n) n) or (n)
  vector_view<T, S> scale;  // (3) or (1)
};

/// X <- post F(norm(sum_i pre_i X_i)) + comb^T X (specification, section 3). `sublayer(x, y)` computes y (N,
/// D) from the normalised x (N, D).
template <hyper_connection_config H, class T, space S, policy P, class Sublayer>
void hyper_connection_site(const P& p, basic_workspace<S>& w, const hyper_connection_parameters<T, S>& parameters,
                           vector_view<const T, S> norm, double norm_eps, tensor_view<T, S> x,
                           const Sublayer& sublayer) {
  const workspace_scope scope(w);
  const std::int64_t rows = x.extent[0], n = H.hc_mult, width = x.extent[2];
  const auto z = take<T>(w, rows, H.mixes());
  const auto pre = take<T>(w, rows, n), post = take<T>(w, rows, n);
  const auto comb = take<T>(w, rows, n, n);
  const auto u = take<T>(w, rows, width), v = take<T>(w, rows, width);
  linear<T, S>::forward(p, {x.reshape(rows, n * width), parameters.fn}, {z});
  hyper_connection_gates<T, S>::forward(
      p, {x, z, parameters.base, parameters.scale, norm_eps, H.hc_eps, H.hc_sinkhorn_iters},
      {pre, post, comb});
  hyper_connection_collapse<T, S>::forward(p, {x, pre}, {u});
  rms_norm<T, S>::forward(p, {u, norm, norm_eps}, {u});
  sublayer(matrix_view<const T, S>(u), v);
  hyper_connection_expand<T, S>::forward(p, {x, v, post, comb}, {x});
}

/// y = norm(sum_i pre_i X_i) with coefficients of its own: after the last layer, and after MTP.
template <hyper_connection_config H, class T, space S, policy P>
void hyper_connection_head(const P& p, basic_workspace<S>& w, const hyper_connection_parameters<T, S>& parameters,
                           vector_view<const T, S> norm, double norm_eps, tensor_view<const T, S> x,
                           matrix_view<T, S> y) {
  const workspace_scope scope(w);
  const std::int64_t rows = x.extent[0], n = H.hc_mult;
  const auto z = take<T>(w, rows, n), pre = take<T>(w, rows, n);
  linear<T, S>::forward(p, {x.reshape(rows, n * x.extent[2]), parameters.fn}, {z});
  hyper_connection_gates<T, S>::forward(p, {x, z, parameters.base, parameters.scale, norm_eps, H.hc_eps, 0},
                                        {pre, {}, {}});
  hyper_connection_collapse<T, S>::forward(p, {x, pre}, {y});
  rms_norm<T, S>::forward(p, {y, norm, norm_eps}, {y});
}

}  // namespace dsv4
