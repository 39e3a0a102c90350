// SPDX-License-Identifier: Apache-2.0
/// Weights that learn from answers, by whatever loss: gradients, Muon and AdamW, router balance.
#pragma once

#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/train/gradient_accumulation.hpp>
#include <dsv4/train/gradient_clip.hpp>
#include <dsv4/train/learning_rate.hpp>
#include <dsv4/train/optimizer.hpp>
#include <dsv4/train/rollout_pass.hpp>
#include <dsv4/train/router_balance.hpp>

#include <algorithm>
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

/// Master weights, gradients and optimiser state on the host. A step depends on these, the batch, the loss
/// and the step's number alone: bit for bit the same for any number of threads. With narrow storage in `Q`
/// each step rounds the master weights, and gradients pass the rounding unchanged. A multi-token-prediction
/// block gets no gradients and only decays.
template <model_config C, class T = float, numerics_config Q = numerics::float32,
          recompute_policy R = recompute::nothing>
class rollout_trainer {
 public:
  using store = parameter_store<C, T>;
  using pass = rollout_pass<C, T, Q, R>;

  /// Weights zero. Throws contract_error for a schedule that is none.
  explicit rollout_trainer(const rollout_trainer_options& options)
      : options_(options), optimizer_(options.optimizer) {
    options.schedule.check();
  }

  /// Takes all weights and tables of another model: a specialist grows from a base model.
  void start_from(const store& from) {
    std::vector<const void*> sources;
    auto views = from.views();
    for_each_parameter<C>(views, [&]<class V>(const parameter_info&, V& v) { sources.push_back(v.data); });
    std::size_t next = 0;
    for_each_parameter<C>(weights_.views(), [&]<class U, int N>(const parameter_info&, view<U, N>& v) {
      std::copy_n(static_cast<const U*>(sources[next++]), v.size(), v.data);
    });
    rounded_ = false;
  }

  /// To be changed before the first step, or followed by start_from.
  store& weights() { return weights_; }
  const store& weights() const { return weights_; }
  const store& gradients() const { return gradients_; }
  dsv4::optimizer<C, T>& optimizer() { return optimizer_; }
  std::int64_t steps() const { return step_; }

  /// The weights as passes read them, until the next step.
  template <policy P>
  const model_parameters<T, Q>& current(const P& p) {
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
  rollout_report step(const P& p, workspace& w, const rollout_batch& batch, Loss&& loss,
                      const rollout_routing<C>* routing = nullptr) {
    rollout_report report;
    report.step = step_;
    report.learning_rate = learning_rate(options_.schedule, step_);
    zero_gradients(gradients_);
    loads_.assign(static_cast<std::size_t>(C.num_hidden_layers()),
                  std::vector<std::int64_t>(C.moe.n_routed_experts));
    const auto losses = pass::step(p, w, current(p), batch, {options_.indexer, routing}, loss,
                                   &gradients_.views(), router_loss(p, w, batch));
    report.loss = losses.loss, report.indexer_loss = losses.indexer;
    report.gradient_norm = gradient_norm(p, w, gradients_);
    report.skipped = !std::isfinite(report.gradient_norm);
    if (!report.skipped) {
      optimizer_.step(p, w, weights_, gradients_,
                      {report.learning_rate, clip_scale(report.gradient_norm, options_.clip)});
      if (options_.router_bias_speed != 0) balance_routers();
      rounded_ = false;
    }
    ++step_;
    return report;
  }

 private:
  /// Counts who was chosen, and adds the balance loss's gradient.
  template <policy P>
  auto router_loss(const P& p, workspace& w, const rollout_batch& batch) {
    return [this, &p, &w, &batch](int layer, matrix_view<const T> logits,
                                  matrix_view<const std::int32_t> chosen, matrix_view<T> dlogits) {
      auto& loads = loads_[static_cast<std::size_t>(layer)];
      count_loads(chosen, {loads.data(), static_cast<std::int64_t>(loads.size())});
      if (C.hashed(layer) || options_.balance == 0) return;
      double loss = 0;
      sequence_balance<T>::forward(p, w,
                                   {logits,
                                    chosen,
                                    {batch.offsets().data(), batch.size() + 1},
                                    options_.balance / double(batch.size())},
                                   {{&loss, 1}, dlogits});
    };
  }

  void balance_routers() {
    for (int i = 0; i < C.num_hidden_layers(); ++i) {
      const auto& loads = loads_[static_cast<std::size_t>(i)];
      if (!C.hashed(i))
        update_router_bias(weights_.views().layers[static_cast<std::size_t>(i)].ffn.gate_bias,
                           {loads.data(), static_cast<std::int64_t>(loads.size())},
                           options_.router_bias_speed);
    }
  }

  rollout_trainer_options options_;
  store weights_, gradients_;
  rounded_parameters<C, T, Q> narrow_;
  bool rounded_ = false;  ///< narrow_ is what weights_ are now
  dsv4::optimizer<C, T> optimizer_;
  std::int64_t step_ = 0;
  std::vector<std::vector<std::int64_t>> loads_;
};

}  // namespace dsv4
