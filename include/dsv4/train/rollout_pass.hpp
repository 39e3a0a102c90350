// SPDX-License-Identifier: Apache-2.0
/// A model's passes over prompts with answers: last hidden states, log-probabilities, and the gradients of a
/// loss of the answers.
#pragma once

#include <dsv4/model/training.hpp>
#include <dsv4/train/rollout_batch.hpp>
#include <dsv4/train/rollout_routing.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <type_traits>

namespace dsv4 {

/// What a loss of answers is given, and what it makes of it: A answer rows.
template <class T>
struct answer_states {
  matrix_view<const T> hidden;              // (A, D), after the final norm
  matrix_view<const T> head;                // (V, D)
  vector_view<const std::int32_t> answers;  // (A), what each row predicts
  matrix_view<T> dhidden;                   // (A, D), =, or empty: only the value is wanted
  matrix_view<T> dhead;                     // (V, D), +=, or empty
};

/// A loss of answers: returns its value and leaves its gradients.
///   double operator()(const P&, workspace&, const answer_states<T>&)
template <class L, class P, class T>
concept answer_loss = requires(L& loss, const P& p, workspace& w, const answer_states<T>& states) {
  { loss(p, w, states) } -> std::convertible_to<double>;
};

template <model_config C>
struct rollout_pass_options {
  double indexer = 0;  ///< weight of the mean divergence of the indexers, per row of the batch
  const rollout_routing<C>* routing = nullptr;  ///< choices to be taken again; null: the routers choose
};

struct rollout_losses {
  double loss = 0, indexer = 0;  ///< of the answers; mean divergence, per row that sees an entry
};

/// The passes of `training<C, T, Q, R>` over the rows of a rollout_batch. Only answer rows reach the head.
/// The multi-token-prediction block does not run. Stateless.
template <model_config C, class T = float, numerics_config Q = numerics::float32,
          recompute_policy R = recompute::nothing>
struct rollout_pass {
  using model = training<C, T, Q, R>;
  using weights = model_parameters<T, Q>;
  using gradient_views = model_gradients<T>;

  /// hidden (A, D) = the last hidden states of the answer rows. `routing` keeps the experts, where wanted.
  template <policy P>
  static void hidden_states(const P& p, workspace& w, const weights& m, const rollout_batch& batch,
                            matrix_view<T> hidden, rollout_routing<C>* routing = nullptr) {
    expect_extent("rollout_pass", "hidden rows", hidden.extent[0], batch.answer_rows());
    expect_extent("rollout_pass", "hidden columns", hidden.extent[1], C.hidden_size);
    const workspace_scope scope(w);
    const auto c = context(w, batch, false);
    model::forward(p, w, m, inputs(batch, batch.tokens()), c);
    gather(batch, c.trunk.hidden, hidden);
    if (routing) routing->record(c);
  }

  /// logp (A) = log pi of the answers' tokens.
  template <policy P>
  static void log_probabilities(const P& p, workspace& w, const weights& m, const rollout_batch& batch,
                                vector_view<T> logp, rollout_routing<C>* routing = nullptr) {
    using op = cross_entropy<T, space::host, typename storage_types<T, Q>::wide>;
    const workspace_scope scope(w);
    const auto hidden = w.take<T>(batch.answer_rows(), C.hidden_size);
    hidden_states(p, w, m, batch, hidden, routing);
    op::forward(p, w, {hidden, m.head, batch.answers()}, {logp});
    for (std::int64_t t = 0; t < logp.extent[0]; ++t) logp(t) = -logp(t);
  }

  /// The loss of the answers, and the indexers' divergence; with `g`, also their gradients, added to *g.
  template <policy P, class Loss, class RouterLoss = no_router_loss>
  requires answer_loss<Loss, P, T>
  static rollout_losses step(const P& p, workspace& w, const weights& m, const rollout_batch& batch,
                             const rollout_pass_options<C>& options, Loss&& loss, const gradient_views* g,
                             const RouterLoss& router_loss = {}) {
    if (batch.rows() == 0) return {};
    const workspace_scope scope(w);
    if (!options.routing) return run(p, w, m, batch, batch.tokens(), options, loss, g, router_loss);
    const auto embedded = w.take<typename storage_types<T, Q>::wide>(batch.rows(), C.hidden_size);
    const weights kept = options.routing->as_model(m, batch.tokens(), embedded);
    gradient_views own;
    if (g) own = *g;
    if (own.embed.data) {
      own.embed = w.take<T>(batch.rows(), C.hidden_size);
      std::fill_n(own.embed.data, own.embed.size(), T(0));
    }
    const rollout_losses losses = run(p, w, kept, batch, options.routing->row_numbers(), options, loss,
                                      g ? &own : nullptr, router_loss);
    if (g) rollout_routing<C>::template add_embedding_gradients<T>(batch.tokens(), own.embed, g->embed);
    return losses;
  }

 private:
  using context_type = typename model::context;

  static context_type context(workspace& w, const rollout_batch& batch, bool indexer) {
    return context_type::take(w, batch.offsets(), {false, {.indexer_loss = indexer}});
  }
  static typename model::inputs inputs(const rollout_batch& batch, vector_view<const std::int32_t> tokens) {
    return {batch.offsets(), tokens, batch.targets(), {}};
  }

  template <policy P, class Loss, class RouterLoss>
  static rollout_losses run(const P& p, workspace& w, const weights& m, const rollout_batch& batch,
                            vector_view<const std::int32_t> tokens, const rollout_pass_options<C>& options,
                            Loss& loss, const gradient_views* g, const RouterLoss& router_loss) {
    const std::int64_t answers = batch.answer_rows(), rows = batch.rows(), width = C.hidden_size;
    const bool indexer = options.indexer != 0 && C.layers.number_of(attention_kind::csa) > 0;
    const auto in = inputs(batch, tokens);
    const context_type c = context(w, batch, indexer);
    model::forward(p, w, m, in, c);

    rollout_losses losses;
    if (indexer) losses.indexer = mean_divergence(c);
    const auto dhidden = g ? w.take<T>(rows, width) : matrix_view<T>();
    {
      const workspace_scope momentary(w);
      const auto some = w.take<T>(answers, width);
      const auto dsome = g ? w.take<T>(answers, width) : matrix_view<T>();
      gather(batch, c.trunk.hidden, some);
      losses.loss = loss(
          p, w, answer_states<T>{some, head(w, m), batch.answers(), dsome, g ? g->head : matrix_view<T>()});
      if (g) scatter(batch, dsome, dhidden);
    }
    if (!g) return losses;
    typename model::upstream up;
    up.dhidden = dhidden;
    if (indexer) {
      const auto upstream = w.take<T>(rows);
      std::fill_n(upstream.data, rows, T(options.indexer / double(rows)));
      up.dindexer_loss = upstream;
    }
    model::backward(p, w, m, in, c, up, *g, router_loss);
    return losses;
  }

  /// The vocabulary's head in T.
  static matrix_view<const T> head(workspace& w, const weights& m) {
    if constexpr (std::is_same_v<typename storage_types<T, Q>::wide, T>) {
      return m.head;
    } else {
      const auto wide = w.take<T>(C.vocab_size, C.hidden_size);
      for (std::int64_t v = 0; v < C.vocab_size; ++v)
        for (std::int64_t i = 0; i < C.hidden_size; ++i) wide(v, i) = T(to_double(m.head(v, i)));
      return wide;
    }
  }

  static double mean_divergence(const context_type& c) {
    double sum = 0;
    std::int64_t rows = 0;
    for (const auto& loss : c.indexer_losses) {
      for (std::int64_t t = 0; t < loss.extent[0]; ++t) sum += double(loss(t));
      for (const auto& s : c.segments)  // the first rows of a sequence see no entry yet
        if (loss.data) rows += std::max<std::int64_t>(0, s.rows - C.attention.csa_compress_ratio + 1);
    }
    return rows ? sum / double(rows) : 0;
  }

  /// Calls f(row, answer row).
  template <class F>
  static void for_each_answer_row(const rollout_batch& batch, const F& f) {
    for (std::int64_t i = 0; i < batch.size(); ++i)
      for (std::int64_t t = batch.answer_offsets()(i), row = batch.first_answer_row(i);
           t < batch.answer_offsets()(i + 1); ++t, ++row)
        f(row, t);
  }
  static void gather(const rollout_batch& batch, matrix_view<const T> all, matrix_view<T> some) {
    for_each_answer_row(batch, [&](std::int64_t row, std::int64_t t) {
      std::copy_n(&all(row, 0), C.hidden_size, &some(t, 0));
    });
  }
  static void scatter(const rollout_batch& batch, matrix_view<const T> some, matrix_view<T> all) {
    std::fill_n(all.data, all.size(), T(0));
    for_each_answer_row(batch, [&](std::int64_t row, std::int64_t t) {
      std::copy_n(&some(t, 0), C.hidden_size, &all(row, 0));
    });
  }
};

}  // namespace dsv4
