// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cpu/adamw.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// The embedding of the 100M configuration.
void adamw_embedding(benchmark::State& state) {
  const std::int64_t n = std::int64_t{bench::config.vocab_size} * bench::config.hidden_size;
  const auto gradient = bench::random(n), weight = bench::random(n), first = bench::zeros(n),
             second = bench::zeros(n);
  std::int64_t step = 0;
  bench::measure(state, [&] {
    adamw<float>::forward(bench::policy(), {gradient.v, 1e-3, ++step}, {weight.v, first.v, second.v});
  });
  bench::report_floats(state, 7 * n);  // four read, three written
}
BENCHMARK(adamw_embedding)->UseRealTime();
}  // namespace
