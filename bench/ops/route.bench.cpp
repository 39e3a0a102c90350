// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/route.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
constexpr moe_config m = bench::config.moe;

void route_scores(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const auto logits = bench::random(rows, m.n_routed_experts),
             weights = bench::zeros(rows, m.num_experts_per_tok);
  const auto bias = bench::random(m.n_routed_experts);
  const auto experts = bench::zeros<std::int32_t>(rows, m.num_experts_per_tok);
  bench::measure(state, [&] {
    route<float>::forward(bench::policy(), {logits, bias, {}, {}, m.routed_scaling_factor},
                          {experts, weights});
  });
  bench::report_rows(state, rows);
}
BENCHMARK(route_scores)->Apply(bench::decode_and_prefill);

void route_hash(benchmark::State& state) {
  const std::int64_t rows = state.range(0), vocabulary = bench::config.vocab_size;
  const auto logits = bench::random(rows, m.n_routed_experts),
             weights = bench::zeros(rows, m.num_experts_per_tok);
  const auto table = bench::random_ids(m.n_routed_experts, vocabulary, m.num_experts_per_tok);
  const auto tokens = bench::random_ids(bench::config.vocab_size, rows);
  const auto experts = bench::zeros<std::int32_t>(rows, m.num_experts_per_tok);
  bench::measure(state, [&] {
    route<float>::forward(bench::policy(), {logits, {}, table, tokens, m.routed_scaling_factor},
                          {experts, weights});
  });
  bench::report_rows(state, rows);
}
BENCHMARK(route_hash)->Apply(bench::decode_and_prefill);
}  // namespace
