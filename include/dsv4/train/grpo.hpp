// SPDX-License-Identifier: Apache-2.0
/// One step of group relative policy optimisation on sampled answers with rewards.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/tensor/buffer.hpp>
#include <dsv4/train/grpo_loss.hpp>
#include <dsv4/train/rollout_pass.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

/// Groups of answers that a policy wrote, with what does not change while they are learned from: advantages,
/// old and reference log-probabilities, and the routers' choices. The loss itself is a number per token and
/// the host's: on a device it waits for the log-probabilities.
template <model_config C, class T = float, numerics_config Q = numerics::float32, space S = space::host>
class grpo {
 public:
  /// `batch` must outlive this. `group` answers that follow one another belong to one prompt. Both models
  /// pass over the batch once: the old one, which wrote the answers, also to keep its experts, so that the
  /// first ratios are 1 up to nothing; the reference only where options.kl_weight is not 0.
  template <policy P>
  grpo(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& old,
       const model_parameters<T, Q, S>& reference, const rollout_batch& batch,
       std::span<const double> rewards, std::int64_t group, const grpo_options& options = {})
      : batch_(&batch), options_(options), advantages_(batch.size()), old_(batch.answer_rows()) {
    using pass = rollout_pass<C, T, Q, recompute::nothing, S>;
    const auto count = static_cast<std::int64_t>(rewards.size());
    expect_extent("grpo", "rewards", count, batch.size());
    group_advantages({rewards.data(), count}, group, {advantages_.data(), count});
    pass::log_probabilities(p, w, old, batch, {old_.data(), old_.size()}, &routing_);
    if (options.kl_weight != 0) {
      reference_ = buffer<T>(batch.answer_rows());
      pass::log_probabilities(p, w, reference, batch, {reference_.data(), reference_.size()});
    }
  }

  const rollout_batch& batch() const { return *batch_; }
  /// For rollout_pass_options: the experts of the pass that found the old log-probabilities.
  const rollout_routing<C, S>& routing() const { return routing_; }
  vector_view<const double> advantages() const { return {advantages_.data(), advantages_.size()}; }
  vector_view<const T> old() const { return {old_.data(), old_.size()}; }
  vector_view<const T> reference() const { return {reference_.data(), reference_.size()}; }
  /// Of the last pass.
  const typename grpo_loss<T>::result& result() const { return result_; }

  /// The loss of answers.
  template <policy P>
  double operator()(const P& p, basic_workspace<S>& w, const answer_states<T, S>& s) {
    const workspace_scope<S> scope(w);
    const std::int64_t rows = s.hidden.extent[0];
    const auto losses = take<T>(w, rows), lse = take<T>(w, rows), upstream = take<T>(w, rows);
    const typename cross_entropy<T, S>::inputs in{s.hidden, s.head, s.answers};
    cross_entropy<T, S>::forward(p, w, in, {losses}, {lse});
    std::vector<T> logp = fetched(p, losses), dlogp(logp.size());
    for (T& l : logp) l = -l;
    result_ = grpo_loss<T>::forward(
        {{logp.data(), rows}, old(), reference(), batch_->answer_offsets(), advantages(), options_},
        {{dlogp.data(), rows}});
    for (T& d : dlogp) d = -d;
    send(p, dlogp.data(), upstream);
    cross_entropy<T, S>::backward(p, w, in, {lse}, {upstream}, {s.dhidden, s.dhead});
    return result_.loss;
  }

 private:
  const rollout_batch* batch_;
  grpo_options options_;
  buffer<double> advantages_;
  buffer<T> old_, reference_;
  rollout_routing<C, S> routing_;
  typename grpo_loss<T>::result result_;
};

}  // namespace dsv4
