// SPDX-License-Identifier: Apache-2.0
/// A training run: rows of a dataset, losses and gradients, Muon and AdamW, router balance.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/model/training.hpp>
#include <dsv4/train/byte_dataset.hpp>
#include <dsv4/train/gradient_accumulation.hpp>
#include <dsv4/train/gradient_clip.hpp>
#include <dsv4/train/learning_rate.hpp>
#include <dsv4/train/optimizer.hpp>
#include <dsv4/train/router_balance.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dsv4 {

struct trainer_options {
  learning_rate_schedule schedule{
      .peak = 2e-3, .last = 2e-4, .steps = 1000, .warmup_steps = 20, .decay_begin = 700};
  std::int64_t rows_per_step = 8;            ///< rows of the dataset in one update
  std::int64_t rows_per_microbatch = 8;      ///< of them, in memory at once
  double mtp_before = 0.3, mtp_after = 0.1;  ///< weight of the second token's loss, before and in the decay
  double indexer = 1;                        ///< weight of the indexers' divergence
  std::int64_t dense_steps = 0;  ///< steps with dense attention, in which only the indexers learn to select
  double clip = 1;               ///< largest norm of a gradient
  double balance = 1e-4;         ///< weight of the sequence-wise balance loss
  double router_bias_speed = 1e-3;
  bool freeze_hyper_connections = false;  ///< with one stream and zero gates: a plain residual
  optimizer_options optimizer = {};
};

/// What one step did. Losses are means per target, in nats.
struct training_report {
  std::int64_t step = 0, targets = 0;
  double loss = 0, mtp_loss = 0, indexer_loss = 0;
  double learning_rate = 0, gradient_norm = 0;
  double max_over_mean_load = 0;  ///< of the worst layer: 1 is perfect balance
  bool skipped = false;           ///< gradients were not finite: weights and state are as before
};

/// Weights, gradients and optimiser state of a run, in memory space `S`. What a step does depends on these,
/// the dataset, the options and the step's number alone: bit for bit the same for any number of threads, and
/// after a resume. With narrow storage in `Q`, the master weights are in T, each step rounds them, and
/// gradients pass the rounding unchanged (docs/training.md).
///
/// On a device the host waits once a micro-batch, for its losses, and once a step, for the gradients' norm:
/// whether there is a step, and by what factor, is decided there.
template <model_config C, class T = float, numerics_config Q = numerics::float32,
          recompute_policy R = recompute::nothing, space S = space::host>
class trainer {
  using pass = training<C, T, Q, R, S>;

 public:
  using store = parameter_store<C, T, numerics::float32, S>;

  /// Weights zero: initialise_for_training or a checkpoint fills them (on a device, by way of
  /// upload_parameters). Throws contract_error for options out of range.
  explicit trainer(const trainer_options& options) : options_(options), optimizer_(options.optimizer) {
    options.schedule.check();
    expect(options.rows_per_microbatch >= 1 && options.rows_per_step >= 1, "trainer", "rows_per_step",
           "at least 1", std::min(options.rows_per_step, options.rows_per_microbatch));
  }

  store& weights() { return weights_; }
  store& gradients() { return gradients_; }
  using update = dsv4::optimizer<C, T, T, numerics::float32, S>;
  update& optimizer() { return optimizer_; }
  /// Steps taken, by this run and those that it resumed.
  std::int64_t steps() const { return step_; }
  const trainer_options& options() const { return options_; }
  /// For runs that learn how long they may be: takes effect with the next step. Throws contract_error.
  void set_schedule(const learning_rate_schedule& schedule) {
    schedule.check();
    options_.schedule = schedule;
  }

  /// Everything that a resumed run needs, for io::training_state, which reaches it by way of `p`.
  template <policy P, class State>
  void remember(const P& p, State& state) {
    state.add_parameters(p, weights_);
    state.add_optimizer(p, optimizer_);
    state.add("step", step_);
    state.add("position", position_);
  }
  template <class State>
  void remember(State& state) requires(S == space::host) {
    remember(exec::reference{}, state);
  }

  /// One update.
  template <policy P>
  training_report step(const P& p, basic_workspace<S>& w, const byte_dataset& data) {
    const workspace_scope<S> scope(w);
    const learning_rate_schedule& schedule = options_.schedule;
    training_report report;
    report.step = step_;
    report.learning_rate = learning_rate(schedule, step_);
    training_weights weight;
    weight.mtp = mtp_loss_weight(schedule, step_, options_.mtp_before, options_.mtp_after);
    weight.indexer = options_.indexer;
    weight.dense = step_ < options_.dense_steps;

    zero_gradients(p, gradients_);
    const model_parameters<T, Q, S>& m = current_weights(p);
    const step_balance<C, T, S> balance(p, w);
    gradient_accumulation batch;
    training_losses sum;
    for (std::int64_t at = 0; at < options_.rows_per_step; at += options_.rows_per_microbatch) {
      const std::int64_t rows = std::min(options_.rows_per_microbatch, options_.rows_per_step - at);
      gather(rows, [&](std::int64_t i, packed_row& row) { data.training_row(position_ + at + i, row); });
      const workspace_scope<S> micro_batch(w);
      // Gradients are divided by the number of tokens later on, so a mean over sequences weighs as many.
      const double scale = options_.balance * double(tokens_.size()) / (double(offsets_.size()) - 1);
      const auto offsets = reachable(p, w, offsets_);
      const auto losses = pass::step(p, w, m, inputs(p, w), weight, &gradients_.views(),
                                     balance.router_loss(p, w, offsets, scale));
      batch.add(losses.tokens, losses.token);
      add(sum, losses);
    }
    report.targets = batch.targets();
    report.loss = batch.mean_loss();
    if (sum.mtp_tokens) report.mtp_loss = sum.mtp / double(sum.mtp_tokens);
    if (sum.indexer_rows) report.indexer_loss = sum.indexer / double(sum.indexer_rows);

    if (options_.freeze_hyper_connections) clear_hyper_connection_gradients(p);
    const double norm = gradient_norm(p, w, gradients_);
    report.gradient_norm = norm * batch.mean();
    report.skipped = !std::isfinite(norm);
    if (!report.skipped) {
      optimizer_.step(p, w, weights_, gradients_,
                      {report.learning_rate, batch.gradient_scale(norm, options_.clip)});
      balance.update(p, weights_.views(), options_.router_bias_speed);
      report.max_over_mean_load = balance.max_over_mean_load(p);
    }
    position_ += options_.rows_per_step;
    ++step_;
    return report;
  }

  /// The mean loss per target of the next token over the first `rows` rows of a split.
  template <policy P>
  double evaluate(const P& p, basic_workspace<S>& w, const byte_dataset& data, data_split split,
                  std::int64_t rows) {
    const model_parameters<T, Q, S>& m = current_weights(p);
    training_losses sum;
    rows = std::min(rows, data.rows(split));
    for (std::int64_t at = 0; at < rows; at += options_.rows_per_microbatch) {
      gather(std::min(options_.rows_per_microbatch, rows - at),
             [&](std::int64_t i, packed_row& row) { data.row(split, at + i, row); });
      const workspace_scope<S> scope(w);
      add(sum, pass::step(p, w, m, inputs(p, w), {}, nullptr));
    }
    return sum.tokens ? sum.token / double(sum.tokens) : 0;
  }

 private:
  static void add(training_losses& sum, const training_losses& l) {
    sum.token += l.token, sum.mtp += l.mtp, sum.indexer += l.indexer;
    sum.tokens += l.tokens, sum.mtp_tokens += l.mtp_tokens, sum.indexer_rows += l.indexer_rows;
  }

  template <policy P>
  const model_parameters<T, Q, S>& current_weights(const P& p) {
    if constexpr (storage_types<T, Q>::plain)
      return weights_.views();
    else
      return narrow_.round(p, weights_);
  }

  /// Rows of the dataset one behind the other.
  template <class Row>
  void gather(std::int64_t rows, const Row& row) {
    tokens_.clear(), targets_.clear(), second_targets_.clear();
    offsets_.assign(1, 0);
    for (std::int64_t i = 0; i < rows; ++i) {
      row(i, row_);
      const auto begin = static_cast<std::int64_t>(tokens_.size());
      tokens_.insert(tokens_.end(), row_.tokens.begin(), row_.tokens.end());
      targets_.insert(targets_.end(), row_.targets.begin(), row_.targets.end());
      second_targets_.insert(second_targets_.end(), row_.second_targets.begin(), row_.second_targets.end());
      for (std::size_t d = 1; d < row_.offsets.size(); ++d) offsets_.push_back(begin + row_.offsets[d]);
    }
  }
  /// The rows at hand where the pass reads them, until the caller's scope ends.
  template <policy P>
  typename pass::inputs inputs(const P& p, basic_workspace<S>& w) const {
    return {offsets_, reachable(p, w, tokens_), reachable(p, w, targets_), reachable(p, w, second_targets_)};
  }

  template <policy P>
  void clear_hyper_connection_gradients(const P& p) {
    for_each_parameter<C>(gradients_.views(),
                          [&]<class U, int N>(const parameter_info& info, view<U, N, S>& v) {
                            if (info.name.find("hc_") != std::string::npos) fill(p, v, U(0));
                          });
  }

  trainer_options options_;
  store weights_, gradients_;
  rounded_parameters<C, T, Q, S> narrow_;  ///< the weights as the pass reads them
  update optimizer_;
  std::int64_t step_ = 0, position_ = 0;
  packed_row row_;
  std::vector<std::int32_t> tokens_, targets_, second_targets_;
  std::vector<std::int64_t> offsets_;
};

}  // namespace dsv4
