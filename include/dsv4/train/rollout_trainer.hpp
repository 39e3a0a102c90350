// SPDX-License-Identifier: Apache-2.0
/// Weights that learn from answers, by whatever loss: gradients, Muon and AdamW, router balance.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/train/gradient_accumulation.hpp>
#include <dsv4/train/gradient_clip.hpp>
#include <dsv4/train/learning_rate.hpp>
#include <dsv4/train/optimizer.hpp>
#include <dsv4/train/rollout_pass.hpp>
#include <dsv4/train/router_balance.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace dsv4 {

struct rollout_trainer_options {
  learning_rate_schedule schedule{
      .peak = 1e-3, .last = 1e-4, .steps = 100, .warmup_steps = 5, .decay_begin = 50};
  double clip = 1;               ///< largest norm of a gradient
  double indexer = 1;            ///< weight of the indexers' divergence
  double balance = 1e-4;         ///< weight of the sequence-wise balance loss
  double router_bias_speed = 0;  ///< 0: routers' biases stay as they are
  optimizer_options optimizer = {};
};

struct rollout_report {
  std::int64_t step = 0;
  double loss = 0, indexer_loss = 0;
  double learning_rate = 0, gradient_norm = 0;
  bool skipped = false;  ///< gradients were not finite: weights and state are as before
};

/// Master weights, gradients and optimiser state, in memory space `S`. A step depends on these, the batch,
/// the loss and the step's number alone: bit for bit the same for any number of threads. With narrow storage
/// in `Q` each step rounds the master weights, and gradients pass the rounding unchanged. A
/// multi-token-prediction block gets no gradients and only decays.
///
/// On a device the host waits once a step for the losses and once for the gradients' norm.
template <model_config C, class T = float, numerics_config Q = numerics::float32,
          recompute_policy R = recompute::nothing, space S = space::host>
class rollout_trainer {
 public:
  using store = parameter_store<C, T, numerics::float32, S>;
  using pass = rollout_pass<C, T, Q, R, S>;
  using update = dsv4::optimizer<C, T, T, numerics::float32, S>;

  /// Weights zero. Throws contract_error for a schedule that is none.
  explicit rollout_trainer(const rollout_trainer_options& options)
      : options_(options), optimizer_(options.optimizer) {
    options.schedule.check();
  }

  /// Takes all weights and tables of another model: a specialist grows from a base model.
  template <policy P>
  void start_from(const P& p, const store& from) {
    std::vector<const void*> sources;
    auto views = from.views();
    for_each_parameter<C>(views, [&]<class V>(const parameter_info&, V& v) { sources.push_back(v.data); });
    std::size_t next = 0;
    for_each_parameter<C>(weights_.views(), [&]<class U, int N>(const parameter_info&, view<U, N, S>& v) {
      view<const U, N, S> source = v;
      source.data = static_cast<const U*>(sources[next++]);
      copy_values(p, source, v);
    });
    rounded_ = false;
  }
  void start_from(const store& from) requires(S == space::host) { start_from(exec::reference{}, from); }

  /// To be changed before the first step, or followed by start_from.
  store& weights() { return weights_; }
  const store& weights() const { return weights_; }
  const store& gradients() const { return gradients_; }
  update& optimizer() { return optimizer_; }
  std::int64_t steps() const { return step_; }

  /// The weights as passes read them, until the next step.
  template <policy P>
  const model_parameters<T, Q, S>& current(const P& p) {
    if constexpr (storage_types<T, Q>::plain) {
      return weights_.views();
    } else {
      if (!rounded_) narrow_.round(p, weights_);
      rounded_ = true;
      return narrow_.views();
    }
  }

  /// One update by `loss` (see answer_loss) of the batch; with `routing`, its experts are taken.
  template <policy P, class Loss>
  rollout_report step(const P& p, basic_workspace<S>& w, const rollout_batch& batch, Loss&& loss,
                      const rollout_routing<C, S>* routing = nullptr) {
    const workspace_scope<S> scope(w);
    rollout_report report;
    report.step = step_;
    report.learning_rate = learning_rate(options_.schedule, step_);
    zero_gradients(p, gradients_);
    const step_balance<C, T, S> balance(p, w);
    const auto offsets = reachable(p, w, batch.offsets());
    const auto losses =
        pass::step(p, w, current(p), batch, {options_.indexer, routing}, loss, &gradients_.views(),
                   balance.router_loss(p, w, offsets, options_.balance / double(batch.size())));
    report.loss = losses.loss, report.indexer_loss = losses.indexer;
    report.gradient_norm = gradient_norm(p, w, gradients_);
    report.skipped = !std::isfinite(report.gradient_norm);
    if (!report.skipped) {
      optimizer_.step(p, w, weights_, gradients_,
                      {report.learning_rate, clip_scale(report.gradient_norm, options_.clip)});
      if (options_.router_bias_speed != 0) balance.update(p, weights_.views(), options_.router_bias_speed);
      rounded_ = false;
    }
    ++step_;
    return report;
  }

 private:
  rollout_trainer_options options_;
  store weights_, gradients_;
  rounded_parameters<C, T, Q, S> narrow_;
  bool rounded_ = false;  ///< narrow_ is what weights_ are now
  update optimizer_;
  std::int64_t step_ = 0;
};

}  // namespace dsv4
