// SPDX-License-Identifier: Apache-2.0
// A training step of the 100M-parameter model in float: loss and all gradients of 512 tokens, under every
// recompute policy. `forward` is its forward pass and loss alone, `update` all that a trainer does in a step.
#include <dsv4/config/parameter_count.hpp>
#include <dsv4/model/training.hpp>
#include <dsv4/train/cpu.hpp>
#include <dsv4/train/gradient_accumulation.hpp>
#include <dsv4/train/gradient_clip.hpp>
#include <dsv4/train/optimizer.hpp>

#include <support/fixtures.hpp>
#include <vector>

namespace {
using namespace dsv4;
using bench::config;
constexpr std::int64_t tokens = bench::prefill_rows;

parameter_store<config, float>& weights() {
  static parameter_store<config, float> w = [] {
    parameter_store<config, float> fresh;
    initialise_by_name(fresh);
    return fresh;
  }();
  return w;
}
parameter_store<config, float>& gradients() {
  static parameter_store<config, float> g;
  return g;
}

template <recompute_policy R>
void step(benchmark::State& state, bool backward) {
  using model = training<config, float, numerics::float32, R>;
  const auto ids = bench::random_ids(config.vocab_size, tokens),
             targets = bench::random_ids(config.vocab_size, tokens);
  const std::vector<std::int64_t> offsets{0, tokens};
  const typename model::inputs in{offsets, ids.v, targets.v, {}};
  workspace w;
  const auto once = [&] {
    model::step(bench::policy(), w, weights().views(), in, {.token = 1.0 / double(tokens)},
                backward ? &gradients().views() : nullptr);
  };
  once();
  bench::measure(state, once);
  // Two per active weight and token forward, twice that backward; attention and recomputation are not
  // counted.
  bench::report_flops(state,
                      (backward ? 6.0 : 2.0) * double(tokens) * double(count_parameters(config).active));
  bench::report_rows(state, tokens);
  state.counters["MB"] = double(w.high_water()) / 1e6;
}

/// A whole step: zeroed gradients, forward, backward, their norm, and the update.
void training_update(benchmark::State& state) {
  using model = training<config, float>;
  const auto ids = bench::random_ids(config.vocab_size, tokens),
             targets = bench::random_ids(config.vocab_size, tokens);
  const std::vector<std::int64_t> offsets{0, tokens};
  const typename model::inputs in{offsets, ids.v, targets.v, {}};
  optimizer<config> update({.muon_for_matrices = state.range(0) != 0});
  workspace w;
  const auto once = [&] {
    zero_gradients(bench::policy(), gradients());
    model::step(bench::policy(), w, weights().views(), in, {.token = 1.0 / double(tokens)},
                &gradients().views());
    update.step(bench::policy(), w, weights(), gradients(),
                {1e-5, clip_scale(gradient_norm(bench::policy(), w, gradients()), 1)});
  };
  once();
  bench::measure(state, once);
  bench::report_rows(state, tokens);
}

void training_forward(benchmark::State& state) { step<recompute::nothing>(state, false); }
void training_step(benchmark::State& state) { step<recompute::nothing>(state, true); }
void training_step_streams(benchmark::State& state) { step<recompute::streams>(state, true); }
void training_step_sublayers(benchmark::State& state) { step<recompute::sublayers>(state, true); }
void training_step_everything(benchmark::State& state) { step<recompute::everything>(state, true); }
BENCHMARK(training_update)->ArgName("muon")->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(training_forward)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(training_step)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(training_step_streams)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(training_step_sublayers)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(training_step_everything)->UseRealTime()->Unit(benchmark::kMillisecond);
}  // namespace
