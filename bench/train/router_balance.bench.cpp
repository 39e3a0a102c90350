// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cpu/router_balance.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

void sequence_balance_rows(benchmark::State& state) {
  const std::int64_t rows = bench::prefill_rows, experts = state.range(0);
  const auto logits = bench::random(rows, experts), dlogits = bench::zeros(rows, experts);
  const auto chosen = bench::random_ids(static_cast<std::int32_t>(experts), rows,
                                        std::int64_t{config.moe.num_experts_per_tok});
  const std::int64_t offsets[] = {0, rows / 2, rows};
  double loss = 0;
  workspace w;
  bench::measure(state, [&] {
    sequence_balance<float>::forward(bench::policy(), w, {logits.v, chosen.v, {offsets, 3}, 1e-4},
                                     {{&loss, 1}, dlogits.v});
  });
  bench::report_rows(state, rows);
}
BENCHMARK(sequence_balance_rows)->ArgName("experts")->Arg(16)->Arg(256)->UseRealTime();
}  // namespace
