// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/grpo_loss.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// 16 answers of 512 tokens.
void grpo_loss_group(benchmark::State& state) {
  const std::int64_t answers = 16, length = 512, tokens = answers * length;
  const auto logp = bench::random(tokens), old = bench::random(tokens), reference = bench::random(tokens),
             dlogp = bench::zeros(tokens);
  const auto offsets = bench::zeros<std::int64_t>(answers + 1);
  const auto advantages = bench::zeros<double>(answers);
  for (std::int64_t i = 0; i <= answers; ++i) offsets.v(i) = i * length;
  for (std::int64_t i = 0; i < answers; ++i) advantages.v(i) = i % 2 ? 0.5 : -0.5;
  bench::measure(state, [&] {
    benchmark::DoNotOptimize(
        grpo_loss<float>::forward({logp.v, old.v, reference.v, offsets.v, advantages.v}, {dlogp.v}));
  });
  bench::report_rows(state, tokens);
}
BENCHMARK(grpo_loss_group);
}  // namespace
