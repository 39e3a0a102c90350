// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/gradient_clip.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

/// All gradients of the 100M configuration.
void gradient_norm_model(benchmark::State& state) {
  parameter_store<config, float> gradients;
  initialise_by_name(gradients);
  workspace w;
  double norm = 0;
  bench::measure(state,
                 [&] { benchmark::DoNotOptimize(norm = gradient_norm(bench::policy(), w, gradients)); });
  bench::report_floats(state, count_parameters(config).with_mtp());
}
BENCHMARK(gradient_norm_model)->UseRealTime();
}  // namespace
