// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cpu.hpp>
#include <dsv4/train/optimizer.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

/// One update of all weights of the 100M configuration.
void optimizer_step(benchmark::State& state) {
  optimizer_options options;
  options.muon.products = state.range(0) ? newton_schulz_products::bf16 : newton_schulz_products::full;
  parameter_store<config, float> weights, gradients;
  initialise_by_name(weights);
  initialise_by_name(gradients, 1);
  optimizer<config> o(options);
  workspace w;
  bench::measure(state, [&] { o.step(bench::policy(), w, weights, gradients, {1e-3}); });
}
BENCHMARK(optimizer_step)->ArgName("bf16")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond)->UseRealTime();
}  // namespace
