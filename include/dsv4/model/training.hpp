// SPDX-License-Identifier: Apache-2.0
/// The model's training pass: whole documents forward, losses, and the gradients of every parameter.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/model/training_context.hpp>
#include <dsv4/model/training_layers.hpp>
#include <dsv4/ops/broadcast_add.hpp>
#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/ops/embedding.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace dsv4 {

/// What each row's loss weighs in the total that is differentiated. For means over a batch, divide by its
/// counts, or scale the gradients afterwards.
struct training_weights {
  double token = 1;  ///< cross-entropy of the next token
  double mtp = 0;    ///< that of the token after it, by the multi-token-prediction block; 0: it does not run
  double indexer = 0;  ///< divergence of the lightning indexers, of every CSA layer; 0: they are not trained
  bool dense = false;  ///< attend to every visible entry: the time before sparse attention
  bool target_includes_sink = false;  ///< see indexer_loss
};

/// Sums over rows, and over how many.
struct training_losses {
  double token = 0, mtp = 0, indexer = 0;
  std::int64_t tokens = 0, mtp_tokens = 0, indexer_rows = 0;
};

/// The training pass of `transformer<C, T, Q, S>`: the same blocks, without caches. Stateless: weights,
/// gradients and memory are the caller's. `R` chooses between memory and time.
template <model_config C, class T = float, numerics_config Q = numerics::float32,
          recompute_policy R = recompute::nothing, space S = space::host>
struct training {
  static_assert(valid<C>());
  using scalar = T;
  using context = training_context<C, T, R, S>;
  using layers = training_layers<C, T, Q, R, S>;
  using weights = model_parameters<T, Q, S>;
  using gradients = model_gradients<T, S>;
  using stored = storage_types<T, Q>;

  /// Packed documents: none sees another one, and its positions begin at 0.
  struct inputs {
    std::span<const std::int64_t> offsets;                ///< document d is rows [offsets[d], offsets[d + 1])
    vector_view<const std::int32_t, S> tokens;            // (N)
    vector_view<const std::int32_t, S> targets;           // (N), negative: not counted
    vector_view<const std::int32_t, S> second_targets;    // (N), of multi-token prediction; may be empty
    vector_view<const std::int32_t, S> next_tokens = {};  // (N), its inputs; empty: `targets`
  };

  /// Gradients of the last hidden states, for losses that the caller computes. Empty: none.
  struct upstream {
    matrix_view<const T, S> dhidden;        // (N, D)
    matrix_view<const T, S> dmtp_hidden;    // (N, D)
    vector_view<const T, S> dindexer_loss;  // (N), the same for every CSA layer
  };

  /// Fills `c`, which was made for these documents: hidden states, indexer losses, and what backward needs.
  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const weights& m, const inputs& in,
                      const context& c) {
    expect_extent("training::forward", "tokens", in.tokens.extent[0], c.rows);
    if (c.rows == 0) return;
    embedding<T, S, typename stored::wide>::forward(p, {in.tokens, m.embed}, {c.trunk.streams.front()});
    layers::forward(p, w, m, in.tokens, c, c.trunk);
    hyper_connection_head<C.hyper_connection, T, S>(p, w, m.head_site, m.norm, C.rms_norm_eps, c.trunk.last,
                                                    c.trunk.hidden, c.trunk.head_site);
    if constexpr (C.num_nextn_predict_layers > 0)
      if (c.options.mtp) {
        mtp_input(p, w, m, in, c);
        layers::forward(p, w, m, in.tokens, c, c.mtp);
        hyper_connection_head<C.hyper_connection, T, S>(p, w, m.mtp.head_site, m.mtp.norm, C.rms_norm_eps,
                                                        c.mtp.last, c.mtp.hidden, c.mtp.head_site);
      }
  }

  /// Adds the gradients of every parameter. `router_loss(layer, logits, chosen, dlogits)` may add to a
  /// router's gradient. Without gradients of hidden states only the indexers are trained.
  template <policy P, class RouterLoss = no_router_loss>
  static void backward(const P& p, basic_workspace<S>& w, const weights& m, const inputs& in,
                       const context& c, const upstream& up, const gradients& g,
                       const RouterLoss& router_loss = {}) {
    if (c.rows == 0) return;
    const workspace_scope scope(w);
    const bool mtp = up.dmtp_hidden.data != nullptr;
    if (!up.dhidden.data && !mtp) {
      if (up.dindexer_loss.data) layers::indexers_backward(p, w, m, c, c.trunk, up.dindexer_loss, g);
      return;
    }
    const auto dx = take<T>(w, c.rows, C.hyper_connection.hc_mult, C.hidden_size);
    if constexpr (C.num_nextn_predict_layers > 0)
      if (mtp) {
        const workspace_scope block(w);
        const auto dblock = take<T>(w, c.rows, C.hyper_connection.hc_mult, C.hidden_size);
        hyper_connection_head_backward<C.hyper_connection, T, S>(
            p, w, m.mtp.head_site, m.mtp.norm, C.rms_norm_eps, c.mtp.last, c.mtp.head_site, up.dmtp_hidden,
            dblock, false, g.mtp.head_site, g.mtp.norm);
        layers::backward(p, w, m, in.tokens, c, c.mtp, {}, dblock, g, router_loss);
        mtp_input_backward(p, w, m, in, c, dblock, dx, g);
      }
    if (up.dhidden.data)
      hyper_connection_head_backward<C.hyper_connection, T, S>(p, w, m.head_site, m.norm, C.rms_norm_eps,
                                                               c.trunk.last, c.trunk.head_site, up.dhidden,
                                                               dx, mtp, g.head_site, g.norm);
    layers::backward(p, w, m, in.tokens, c, c.trunk, up.dindexer_loss, dx, g, router_loss);
    embedding<T, S, typename stored::wide>::backward(p, w, {in.tokens, m.embed}, {dx}, {g.embed});
  }

  /// The losses of a batch; with `g`, also their gradients, weighted and added to *g. The losses are the
  /// host's: on a device this waits, once everything is queued.
  template <policy P, class RouterLoss = no_router_loss>
  static training_losses step(const P& p, basic_workspace<S>& w, const weights& m, const inputs& in,
                              const training_weights& weight, const gradients* g,
                              const RouterLoss& router_loss = {}) {
    const workspace_scope scope(w);
    const bool mtp = weight.mtp != 0 && C.num_nextn_predict_layers > 0;
    const context c =
        context::take(w, in.offsets, {mtp, {weight.dense, weight.indexer != 0, weight.target_includes_sink}});
    forward(p, w, m, in, c);

    upstream up;
    matrix_view<T, S> dhidden, dmtp_hidden;
    if (g && weight.token != 0) up.dhidden = dhidden = take<T>(w, c.rows, C.hidden_size);
    if (g && mtp) up.dmtp_hidden = dmtp_hidden = take<T>(w, c.rows, C.hidden_size);
    const auto token_loss = take<T>(w, c.rows), mtp_loss = take<T>(w, mtp ? c.rows : 0);
    next_token_loss(p, w, m, c.trunk.hidden, in.targets, weight.token, token_loss, dhidden, g);
    if (mtp) next_token_loss(p, w, m, c.mtp.hidden, in.second_targets, weight.mtp, mtp_loss, dmtp_hidden, g);
    if (g) {
      if (weight.indexer != 0) up.dindexer_loss = constant(p, w, c.rows, weight.indexer);
      backward(p, w, m, in, c, up, *g, router_loss);
    }

    training_losses losses;
    add_losses(p, token_loss, in.targets, losses.token, losses.tokens);
    if (mtp) add_losses(p, mtp_loss, in.second_targets, losses.mtp, losses.mtp_tokens);
    add_divergences(p, c, losses);
    return losses;
  }

  /// Adds what a pass found of its indexers: losses.indexer, and over how many rows.
  template <policy P>
  static void add_divergences(const P& p, const context& c, training_losses& losses) {
    for (const auto& loss : c.indexer_losses) {
      if (!loss.data) continue;
      for (T v : fetched(p, loss)) losses.indexer += double(v);
      for (const auto& s : c.segments)  // the first rows of a document see no entry yet
        losses.indexer_rows += std::max<std::int64_t>(0, s.rows - C.attention.csa_compress_ratio + 1);
    }
  }

 private:
  using projection = linear<T, S, typename stored::linear, typename stored::activation>;
  using activation = typename stored::activation;

  template <policy P>
  static vector_view<T, S> constant(const P& p, basic_workspace<S>& w, std::int64_t rows, double value) {
    const auto v = take<T>(w, rows);
    fill(p, v, T(value));
    return v;
  }

  /// Cross-entropy of `hidden` by the shared head, row by row, and gradients where dhidden is wanted.
  template <policy P>
  static void next_token_loss(const P& p, basic_workspace<S>& w, const weights& m,
                              matrix_view<const T, S> hidden, vector_view<const std::int32_t, S> targets,
                              double weight, vector_view<T, S> loss, matrix_view<T, S> dhidden,
                              const gradients* g) {
    using loss_op = cross_entropy<T, S, typename stored::wide>;
    const workspace_scope scope(w);
    const typename loss_op::inputs in{hidden, m.head, targets};
    if (!dhidden.data) return loss_op::forward(p, w, in, {loss});
    loss_op::forward_backward(p, w, in, {loss}, {constant(p, w, hidden.extent[0], weight)},
                              {dhidden, g->head});
  }
  template <policy P>
  static void add_losses(const P& p, vector_view<const T, S> loss, vector_view<const std::int32_t, S> targets,
                         double& sum, std::int64_t& count) {
    for (T v : fetched(p, loss)) sum += double(v);
    for (std::int32_t t : fetched(p, targets)) count += t >= 0;
  }

  static vector_view<const std::int32_t, S> mtp_tokens(const inputs& in) {
    return in.next_tokens.data ? in.next_tokens : in.targets;
  }

  /// X_i = h_proj norm(X^trunk_i) + e_proj norm(embedding of the next token), for every stream i
  /// (docs/blocks/mtp.md). `e` and `normed` are left as the projections read them.
  template <policy P>
  static void mtp_input(const P& p, basic_workspace<S>& w, const weights& m, const inputs& in,
                        const context& c) requires(C.num_nextn_predict_layers > 0) {
    const workspace_scope scope(w);
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    const auto& x = c.mtp.streams.front();
    const auto e = take<T>(w, c.rows, 1, width).reshape(c.rows, width), projected = take<T>(w, c.rows, width);
    const auto normed = take<T>(w, c.rows * n, width);
    embedding<T, S, typename stored::wide>::forward(p, {mtp_tokens(in), m.embed},
                                                    {e.reshape(c.rows, 1, width)});
    rms_norm<T, S>::forward(p, {e, m.mtp.enorm, C.rms_norm_eps}, {e});
    projection::forward(p, {as_activation<activation>(p, w, e), m.mtp.e_proj}, {projected});
    rms_norm<T, S>::forward(p, {c.trunk.last.reshape(c.rows * n, width), m.mtp.hnorm, C.rms_norm_eps},
                            {normed});
    projection::forward(p, {as_activation<activation>(p, w, normed), m.mtp.h_proj},
                        {x.reshape(c.rows * n, width)});
    broadcast_add<T, S>::forward(p, {projected}, {x});
  }

  /// The same backwards: dx, the gradient of the trunk's streams, is overwritten.
  template <policy P>
  static void mtp_input_backward(const P& p, basic_workspace<S>& w, const weights& m, const inputs& in,
                                 const context& c, tensor_view<const T, S> dblock, tensor_view<T, S> dx,
                                 const gradients& g) requires(C.num_nextn_predict_layers > 0) {
    const workspace_scope scope(w);
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    const std::int64_t rows = c.rows;
    const auto e = take<T>(w, rows, width), normed_e = take<T>(w, rows, width), de = take<T>(w, rows, width);
    const auto dprojected = take<T>(w, rows, width), normed = take<T>(w, rows * n, width);
    const auto streams = c.trunk.last.reshape(rows * n, width), dstreams = dx.reshape(rows * n, width);
    embedding<T, S, typename stored::wide>::forward(p, {mtp_tokens(in), m.embed},
                                                    {e.reshape(rows, 1, width)});
    rms_norm<T, S>::forward(p, {e, m.mtp.enorm, C.rms_norm_eps}, {normed_e});
    rms_norm<T, S>::forward(p, {streams, m.mtp.hnorm, C.rms_norm_eps}, {normed});

    broadcast_add<T, S>::backward(p, w, {}, {dblock}, {dprojected});
    projection::backward(p, w, {as_activation<activation>(p, w, normed), m.mtp.h_proj},
                         {dblock.reshape(rows * n, width)}, {dstreams, g.mtp.h_proj});
    rms_norm<T, S>::backward(p, w, {streams, m.mtp.hnorm, C.rms_norm_eps}, {dstreams},
                             {dstreams, g.mtp.hnorm});
    projection::backward(p, w, {as_activation<activation>(p, w, normed_e), m.mtp.e_proj}, {dprojected},
                         {de, g.mtp.e_proj});
    rms_norm<T, S>::backward(p, w, {e, m.mtp.enorm, C.rms_norm_eps}, {de}, {de, g.mtp.enorm});
    embedding<T, S, typename stored::wide>::backward(p, w, {mtp_tokens(in), m.embed},
                                                     {de.reshape(rows, 1, width)}, {g.embed});
  }
};

}  // namespace dsv4
