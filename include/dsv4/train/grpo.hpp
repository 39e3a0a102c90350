// SPDX-License-Identifier: Apache-2.0
/// One step of group relative policy optimisation on sampled answers with rewards.
#pragma once

#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/tensor/buffer.hpp>
#include <dsv4/train/grpo_loss.hpp>
#include <dsv4/train/rollout_pass.hpp>

#include <cstdint>
#include <span>

namespace dsv4 {

/// Groups of answers that a policy wrote, with what does not change while they are learned from: advantages,
/// old and reference log-probabilities, and the routers' choices.
template <model_config C, class T = float, numerics_config Q = numerics::float32>
class grpo {
 public:
  /// `batch` must outlive this. `group` answers that follow one another belong to one prompt. Both models
  /// pass over the batch once: the old one, which wrote the answers, also to keep its experts, so that the
  /// first ratios are 1 up to nothing; the reference only where options.kl_weight is not 0.
  template <policy P>
  grpo(const P& p, workspace& w, const model_parameters<T, Q>& old, const model_parameters<T, Q>& reference,
       const rollout_batch& batch, std::span<const double> rewards, std::int64_t group,
       const grpo_options& options = {})
      : batch_(&batch), options_(options), advantages_(batch.size()), old_(batch.answer_rows()) {
    using pass = rollout_pass<C, T, Q>;
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
  const rollout_routing<C>& routing() const { return routing_; }
  vector_view<const double> advantages() const { return {advantages_.data(), advantages_.size()}; }
  vector_view<const T> old() const { return {old_.data(), old_.size()}; }
  vector_view<const T> reference() const { return {reference_.data(), reference_.size()}; }
  /// Of the last pass.
  const typename grpo_loss<T>::result& result() const { return result_; }

  /// The loss of answers.
  template <policy P>
  double operator()(const P& p, workspace& w, const answer_states<T>& s) {
    const workspace_scope scope(w);
    const std::int64_t rows = s.hidden.extent[0];
    const auto logp = w.take<T>(rows), lse = w.take<T>(rows), dlogp = w.take<T>(rows);
    const typename cross_entropy<T>::inputs in{s.hidden, s.head, s.answers};
    cross_entropy<T>::forward(p, w, in, {logp}, {lse});
    for (std::int64_t t = 0; t < rows; ++t) logp(t) = -logp(t);
    result_ = grpo_loss<T>::forward(
        {logp, old(), reference(), batch_->answer_offsets(), advantages(), options_}, {dlogp});
    for (std::int64_t t = 0; t < rows; ++t) dlogp(t) = -dlogp(t);
    cross_entropy<T>::backward(p, w, in, {lse}, {dlogp}, {s.dhidden, s.dhead});
    return result_.loss;
  }

 private:
  const rollout_batch* batch_;
  grpo_options options_;
  buffer<double> advantages_;
  buffer<T> old_, reference_;
  rollout_routing<C> routing_;
  typename grpo_loss<T>::result result_;
};

}  // namespace dsv4
