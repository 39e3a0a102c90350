// SPDX-License-Identifier: Apache-2.0
/// A model's passes over prompts with answers: last hidden states, log-probabilities, and the gradients of a
/// loss of the answers.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/training.hpp>
#include <dsv4/ops/copy_rows.hpp>
#include <dsv4/ops/embedding.hpp>
#include <dsv4/train/rollout_batch.hpp>
#include <dsv4/train/rollout_routing.hpp>

#include <concepts>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

namespace dsv4 {

/// What a loss of answers is given, and what it makes of it: A answer rows.
template <class T, space S = space::host>
struct answer_states {
  matrix_view<const T, S> hidden;              // (A, D), after the final norm
  matrix_view<const T, S> head;                // (V, D)
  vector_view<const std::int32_t, S> answers;  // (A), what each row predicts
  matrix_view<T, S> dhidden;                   // (A, D), =, or empty: only the value is wanted
  matrix_view<T, S> dhead;                     // (V, D), +=, or empty
};

/// A loss of answers: returns its value and leaves its gradients.
///   double operator()(const P&, basic_workspace<S>&, const answer_states<T, S>&)
template <class L, class P, class T, space S = space::host>
concept answer_loss = requires(L& loss, const P& p, basic_workspace<S>& w,
                               const answer_states<T, S>& states) {
  { loss(p, w, states) } -> std::convertible_to<double>;
};

template <model_config C, space S = space::host>
struct rollout_pass_options {
  double indexer = 0;  ///< weight of the mean divergence of the indexers, per row of the batch
  const rollout_routing<C, S>* routing = nullptr;  ///< choices to be taken again; null: the routers choose
};

struct rollout_losses {
  double loss = 0, indexer = 0;  ///< of the answers; mean divergence, per row that sees an entry
};

/// The passes of `training<C, T, Q, R, S>` over the rows of a rollout_batch, which is the host's. Only answer
/// rows reach the head. The multi-token-prediction block does not run. Stateless.
template <model_config C, class T = float, numerics_config Q = numerics::float32,
          recompute_policy R = recompute::nothing, space S = space::host>
struct rollout_pass {
  using model = training<C, T, Q, R, S>;
  using weights = model_parameters<T, Q, S>;
  using gradient_views = model_gradients<T, S>;
  using options = rollout_pass_options<C, S>;
  using wide = typename storage_types<T, Q>::wide;

  /// hidden (A, D) = the last hidden states of the answer rows. `routing` keeps the experts, where wanted.
  template <policy P>
  static void hidden_states(const P& p, basic_workspace<S>& w, const weights& m, const rollout_batch& batch,
                            matrix_view<T, S> hidden, rollout_routing<C, S>* routing = nullptr) {
    expect_extent("rollout_pass", "hidden rows", hidden.extent[0], batch.answer_rows());
    expect_extent("rollout_pass", "hidden columns", hidden.extent[1], C.hidden_size);
    const workspace_scope<S> scope(w);
    const auto c = context(w, batch, false);
    model::forward(p, w, m, inputs(batch, tokens(p, w, batch)), c);
    gather(p, batch, c.trunk.hidden, hidden);
    if (routing) routing->record(p, c);
  }

  /// logp (A) = log pi of the answers' tokens, on the host.
  template <policy P>
  static void log_probabilities(const P& p, basic_workspace<S>& w, const weights& m,
                                const rollout_batch& batch, vector_view<T> logp,
                                rollout_routing<C, S>* routing = nullptr) {
    expect_extent("rollout_pass", "logp", logp.extent[0], batch.answer_rows());
    const workspace_scope<S> scope(w);
    const auto hidden = take<T>(w, batch.answer_rows(), C.hidden_size);
    const auto losses = take<T>(w, batch.answer_rows());
    hidden_states(p, w, m, batch, hidden, routing);
    cross_entropy<T, S, wide>::forward(p, w, {hidden, m.head, answers(p, w, batch)}, {losses});
    fetch(p, losses, logp.data);
    for (std::int64_t t = 0; t < logp.extent[0]; ++t) logp(t) = -logp(t);
  }

  /// The loss of the answers, and the indexers' divergence; with `g`, also their gradients, added to *g.
  template <policy P, class Loss, class RouterLoss = no_router_loss>
  requires answer_loss<Loss, P, T, S>
  static rollout_losses step(const P& p, basic_workspace<S>& w, const weights& m, const rollout_batch& batch,
                             const options& o, Loss&& loss, const gradient_views* g,
                             const RouterLoss& router_loss = {}) {
    if (batch.rows() == 0) return {};
    const workspace_scope<S> scope(w);
    const auto ids = tokens(p, w, batch);
    if (!o.routing) return run(p, w, m, batch, ids, o, loss, g, router_loss);
    const auto embedded = take<wide>(w, batch.rows(), C.hidden_size);
    const weights kept = o.routing->as_model(p, m, ids, embedded);
    gradient_views own;
    if (g) own = *g;
    if (own.embed.data) {
      own.embed = take<T>(w, batch.rows(), C.hidden_size);
      fill(p, own.embed, T(0));
    }
    const rollout_losses losses =
        run(p, w, kept, batch, o.routing->row_numbers(), o, loss, g ? &own : nullptr, router_loss);
    if (g)
      rollout_routing<C, S>::add_embedding_gradients(p, w, ids, matrix_view<const T, S>(own.embed), g->embed);
    return losses;
  }

 private:
  using context_type = typename model::context;
  using ids_view = vector_view<const std::int32_t, S>;

  template <policy P>
  static ids_view tokens(const P& p, basic_workspace<S>& w, const rollout_batch& batch) {
    return reachable(p, w, batch.tokens());
  }
  template <policy P>
  static ids_view answers(const P& p, basic_workspace<S>& w, const rollout_batch& batch) {
    return reachable(p, w, batch.answers());
  }

  static context_type context(basic_workspace<S>& w, const rollout_batch& batch, bool indexer) {
    return context_type::take(w, batch.offsets(), {false, {.indexer_loss = indexer}});
  }
  /// Without targets: losses of answers have their own, and the multi-token-prediction block does not run.
  static typename model::inputs inputs(const rollout_batch& batch, ids_view tokens) {
    return {batch.offsets(), tokens, {}, {}};
  }

  template <policy P, class Loss, class RouterLoss>
  static rollout_losses run(const P& p, basic_workspace<S>& w, const weights& m, const rollout_batch& batch,
                            ids_view ids, const options& o, Loss& loss, const gradient_views* g,
                            const RouterLoss& router_loss) {
    const std::int64_t rows = batch.rows(), width = C.hidden_size;
    const bool indexer = o.indexer != 0 && C.layers.number_of(attention_kind::csa) > 0;
    const auto in = inputs(batch, ids);
    const context_type c = context(w, batch, indexer);
    model::forward(p, w, m, in, c);

    rollout_losses losses;
    if (indexer) {
      training_losses found;
      model::add_divergences(p, c, found);
      if (found.indexer_rows) losses.indexer = found.indexer / double(found.indexer_rows);
    }
    const auto dhidden = g ? take<T>(w, rows, width) : matrix_view<T, S>();
    {
      const workspace_scope<S> momentary(w);
      const auto some = take<T>(w, batch.answer_rows(), width);
      const auto dsome = g ? take<T>(w, batch.answer_rows(), width) : matrix_view<T, S>();
      gather(p, batch, c.trunk.hidden, some);
      losses.loss = loss(p, w,
                         answer_states<T, S>{some, head(p, w, m), answers(p, w, batch), dsome,
                                             g ? g->head : matrix_view<T, S>()});
      if (g) scatter(p, batch, dsome, dhidden);
    }
    if (!g) return losses;
    typename model::upstream up;
    up.dhidden = dhidden;
    if (indexer) {
      const auto upstream = take<T>(w, rows);
      fill(p, upstream, T(o.indexer / double(rows)));
      up.dindexer_loss = upstream;
    }
    model::backward(p, w, m, in, c, up, *g, router_loss);
    return losses;
  }

  /// The vocabulary's head in T: looking up every row widens it.
  template <policy P>
  static matrix_view<const T, S> head(const P& p, basic_workspace<S>& w, const weights& m) {
    if constexpr (std::is_same_v<wide, T>) {
      return m.head;
    } else {
      std::vector<std::int32_t> all(C.vocab_size);
      std::iota(all.begin(), all.end(), 0);
      const auto widened = take<T>(w, C.vocab_size, C.hidden_size);
      embedding<T, S, wide>::forward(p, {reachable(p, w, all), m.head},
                                     {widened.reshape(C.vocab_size, 1, C.hidden_size)});
      return widened;
    }
  }

  /// Calls f(first row, first answer row, how many) for every sequence.
  template <class F>
  static void for_each_answer(const rollout_batch& batch, const F& f) {
    for (std::int64_t i = 0; i < batch.size(); ++i) {
      const std::int64_t begin = batch.answer_offsets()(i);
      f(batch.first_answer_row(i), begin, batch.answer_offsets()(i + 1) - begin);
    }
  }
  template <policy P>
  static void gather(const P& p, const rollout_batch& batch, matrix_view<const T, S> all,
                     matrix_view<T, S> some) {
    for_each_answer(batch, [&](std::int64_t row, std::int64_t t, std::int64_t n) {
      copy_rows<T, S>::forward(p, {all, row, t, n}, {some});
    });
  }
  template <policy P>
  static void scatter(const P& p, const rollout_batch& batch, matrix_view<const T, S> some,
                      matrix_view<T, S> all) {
    fill(p, all, T(0));
    for_each_answer(batch, [&](std::int64_t row, std::int64_t t, std::int64_t n) {
      copy_rows<T, S>::forward(p, {some, t, row, n}, {all});
    });
  }
};

}  // namespace dsv4
