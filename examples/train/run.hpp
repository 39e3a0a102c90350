// SPDX-License-Identifier: Apache-2.0
/// A training run from a text to a saved model, for any policy.
#pragma once

#include "../run/console.hpp"
#include "options.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/io/config_json.hpp>
#include <dsv4/io/training_folder.hpp>
#include <dsv4/io/training_state.hpp>
#include <dsv4/train/initialise.hpp>
#include <dsv4/train/trainer.hpp>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

namespace training_program {

/// One stream whose gates are frozen at 1: the residual connection of other transformers.
template <dsv4::model_config C>
constexpr dsv4::model_config plain_residual() {
  dsv4::model_config c = C;
  c.hyper_connection.hc_mult = 1;
  return c;
}

/// Loss, speed and time left on one line of the terminal; a line that stays with every loss held out.
class progress {
 public:
  explicit progress(const options& o) {
    if (!o.log.empty()) {
      log_.open(o.log, o.resume ? std::ios::app : std::ios::trunc);
      if (!o.resume)
        log_ << "step,targets,seconds,loss,mtp_loss,indexer_loss,learning_rate,gradient_norm,held_out\n";
    }
  }

  void show(const dsv4::training_report& r, std::int64_t steps, double held_out) {
    smooth_ = started_ ? 0.9 * smooth_ + 0.1 * r.loss : r.loss;
    started_ = true;
    targets_ += r.targets;
    const double seconds = watch_.seconds(),
                 done = double(r.step + 1 - first_step(r)) / double(steps - first_);
    if (log_.is_open()) {
      char line[256];
      std::snprintf(line, sizeof line, "%lld,%lld,%.3f,%.5f,%.5f,%.5f,%.3g,%.4g,",
                    static_cast<long long>(r.step), static_cast<long long>(targets_), seconds, r.loss,
                    r.mtp_loss, r.indexer_loss, r.learning_rate, r.gradient_norm);
      log_ << line;
      if (!std::isnan(held_out)) log_ << held_out;
      log_ << std::endl;
    }
    std::string bar(24, '.');
    bar.replace(0, static_cast<std::size_t>(done * 24), static_cast<std::size_t>(done * 24), '#');
    char text[256];
    std::snprintf(text, sizeof text, "[%s] step %lld/%lld  loss %.3f  %.0f tokens/s  ETA %.0f s", bar.c_str(),
                  static_cast<long long>(r.step + 1), static_cast<long long>(steps), smooth_,
                  double(targets_) / seconds, seconds / done - seconds);
    const bool keep = !std::isnan(held_out);
    if (terminal_) std::fprintf(stderr, "\r\033[K%s", text);
    if (keep) std::fprintf(stderr, "%s  held out %.3f\n", terminal_ ? "" : text, held_out);
    std::fflush(stderr);
  }

 private:
  std::int64_t first_step(const dsv4::training_report& r) {
    if (first_ < 0) first_ = r.step;
    return first_;
  }

  std::int64_t first_ = -1, targets_ = 0;
  double smooth_ = 0;
  bool started_ = false, terminal_ = isatty(STDERR_FILENO) != 0;
  std::ofstream log_;
  runner::stopwatch watch_;
};

inline dsv4::learning_rate_schedule schedule_of(const options& o, std::int64_t steps) {
  // Muon's updates are as large as AdamW's, so the rate is one and the same.
  const double peak = o.rate > 0 ? o.rate : o.optimizer == "adamw" ? 1e-2 : 2e-2;
  return {peak, peak / 10, steps, std::min<std::int64_t>(20, steps / 10),
          steps - static_cast<std::int64_t>(o.decay * double(steps))};
}

/// What was trained is what the products read.
template <dsv4::model_config C, dsv4::numerics_config Q, dsv4::policy P>
void save_model(const P& p, const std::filesystem::path& file, dsv4::parameter_store<C, float>& weights) {
  if constexpr (dsv4::storage_types<float, Q>::plain) {
    dsv4::io::save_parameters(file, weights);
  } else {
    dsv4::parameter_store<C, float, Q> rounded;
    dsv4::quantise_parameters(p, weights, rounded);
    dsv4::io::save_parameters(file, rounded);
  }
}

template <dsv4::model_config C, dsv4::numerics_config Q, dsv4::policy P>
int train(const P& p, const options& o) {
  using namespace dsv4;
  constexpr space S = P::memory;
  const io::mapped_file text(o.data);
  byte_dataset_options data_options;
  data_options.row_tokens = o.row_tokens;
  data_options.separator = o.separator;
  data_options.packing = o.separator.empty() ? row_packing::windows : row_packing::best_fit;
  data_options.seed = o.seed;
  const byte_dataset data(text.bytes(), data_options);

  trainer_options how;
  how.schedule = schedule_of(o, o.minutes > 0 ? 1'000'000 : o.steps);
  how.rows_per_step = o.rows;
  how.rows_per_microbatch = o.microbatch;
  how.dense_steps = o.dense_steps;
  how.freeze_hyper_connections = o.residual == "plain";
  if (o.optimizer == "adamw") how.optimizer.muon_for_matrices = false;
  trainer<C, float, Q, recompute::nothing, S> run(how);
  initialisation start{.seed = o.seed};
  if (how.freeze_hyper_connections) start.gating = 0;
  if constexpr (S == space::host) {
    initialise_for_training(run.weights(), start);
  } else {
    parameter_store<C, float> weights;
    initialise_for_training(weights, start);
    upload_parameters(p, weights, run.weights());
  }

  io::training_state state;
  run.remember(p, state);
  state.require("configuration", detail::fnv1a64(io::config_to_json<C>()));
  state.require("data", data.fingerprint());
  state.require("optimizer", o.optimizer);
  for (const auto& [option, value] : std::initializer_list<std::pair<const char*, std::string>>{
           {"--row-tokens", std::to_string(o.row_tokens)},
           {"--rows", std::to_string(o.rows)},
           {"--separator", o.separator},
           {"--seed", std::to_string(o.seed)},
           {"--numerics", o.numerics},
           {"--rate", std::to_string(o.rate)},
           {"--decay", std::to_string(o.decay)},
           {"--dense-steps", std::to_string(o.dense_steps)}})
    state.require(option, value);
  const io::training_folder folder(o.out / "training");
  if (!o.resume && !folder.steps().empty())
    throw contract_error("dsv4-train", "--out", "a folder without saved states, or --resume", o.out.string());
  if (o.resume) {
    if (const auto step = folder.load_newest(state))
      std::fprintf(stderr, "resumed after step %lld\n", static_cast<long long>(*step));
  }
  std::fprintf(stderr, "%.2fM parameters, %lld training rows of at most %lld tokens, %s\n",
               double(count_parameters(C).with_mtp()) / 1e6,
               static_cast<long long>(data.rows(data_split::training)), static_cast<long long>(o.row_tokens),
               o.optimizer == "muon" ? "Muon and AdamW" : "AdamW");

  basic_workspace<S> w;
  progress line(o);
  std::int64_t steps = o.minutes > 0 ? 0 : o.steps;
  runner::stopwatch clock;
  constexpr std::int64_t trial = 6;  // steps that tell how long a step takes
  while ((steps == 0 || run.steps() < steps) && !runner::interrupted()) {
    const auto report = run.step(p, w, data);
    if (report.skipped)
      std::fprintf(stderr, "\nstep %lld: gradients are not finite; skipped\n",
                   static_cast<long long>(report.step));
    if (steps == 0 && run.steps() >= trial) {
      steps = std::max<std::int64_t>(
          trial + 1, static_cast<std::int64_t>(o.minutes * 60 / clock.seconds() * double(run.steps())));
      run.set_schedule(schedule_of(o, steps));
    }
    const bool last = run.steps() == steps || runner::interrupted();
    const bool evaluate = steps > 0 && (run.steps() % o.evaluate_every == 0 || last);
    const double held_out = evaluate ? run.evaluate(p, w, data, data_split::held_out, o.held_out_rows)
                                     : std::numeric_limits<double>::quiet_NaN();
    if (steps > 0) line.show(report, steps, held_out);
    if (run.steps() % o.save_every == 0 || last) folder.save(state, run.steps());
  }
  const auto file = o.out / io::checkpoint_single_name;
  if constexpr (S == space::device) {
    parameter_store<C, float> weights;
    download_parameters(p, run.weights(), weights);
    save_model<C, Q>(exec::reference{}, file, weights);
  } else {
    save_model<C, Q>(p, file, run.weights());
  }
  std::ofstream config(o.out / "config.json");
  config << io::config_to_json<C>() << '\n';
  if (!config.flush()) throw io_error((o.out / "config.json").string(), "write", "failed");
  std::fprintf(stderr, "saved %s; continue a text with: dsv4-run %s --prompt TEXT\n", o.out.c_str(),
               o.out.c_str());
  return runner::interrupted() ? 130 : 0;
}

template <dsv4::model_config C, dsv4::policy P>
int train_residual(const P& p, const options& o) {
  using namespace dsv4;
  if (o.residual == "plain") {
    if (o.numerics != "float32")
      throw contract_error("dsv4-train", "--numerics", "float32 with --residual plain", o.numerics);
    return train<plain_residual<C>(), numerics::float32>(p, o);
  }
  if (o.numerics == "v4_released") return train<C, numerics::v4_released>(p, o);
  return train<C, numerics::float32>(p, o);
}

/// The configuration that is asked for.
template <dsv4::policy P>
int train_configuration(const P& p, const options& o) {
  return o.config == "v4_bench" ? train_residual<dsv4::v4_bench>(p, o) : train_residual<dsv4::v4_nano>(p, o);
}

}  // namespace training_program
