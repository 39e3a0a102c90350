// SPDX-License-Identifier: Apache-2.0
// Choosing experts by score, and by a table.
#include <dsv4/ops/route.hpp>

#include <algorithm>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void scores(benchmark::State& state, const model_config& c) {
  const moe_config& m = c.moe;
  const std::int64_t rows = state.range(0);
  const auto logits = bench::random(rows, m.n_routed_experts),
             weights = bench::zeros(rows, m.num_experts_per_tok);
  const auto bias = bench::random(m.n_routed_experts);
  const auto experts = bench::zeros<std::int32_t>(rows, m.num_experts_per_tok);
  bench::measure(state, [&] {
    route<float>::forward(bench::policy(), {logits, bias, {}, {}, m.routed_scaling_factor},
                          {experts, weights});
  });
  bench::report_floats(state, rows * m.n_routed_experts, bench::traffic::read);
}

void table(benchmark::State& state, const model_config& c) {
  const moe_config& m = c.moe;
  const std::int64_t rows = state.range(0), k = m.num_experts_per_tok;
  const std::int32_t vocabulary = std::min(c.vocab_size, 16384);
  const auto logits = bench::random(rows, m.n_routed_experts), weights = bench::zeros(rows, k);
  const auto ids = bench::random_ids(m.n_routed_experts, vocabulary, k);
  const auto tokens = bench::random_ids(vocabulary, rows);
  const auto experts = bench::zeros<std::int32_t>(rows, k);
  bench::measure(state, [&] {
    route<float>::forward(bench::policy(), {logits, {}, ids, tokens, m.routed_scaling_factor},
                          {experts, weights});
  });
  bench::report_floats(state, rows * 3 * k, bench::traffic::read);
}

void backward(benchmark::State& state, const model_config& c) {
  const moe_config& m = c.moe;
  const std::int64_t rows = state.range(0), k = m.num_experts_per_tok;
  const auto logits = bench::random(rows, m.n_routed_experts),
             dlogits = bench::zeros(rows, m.n_routed_experts);
  const auto bias = bench::random(m.n_routed_experts);
  const auto dweights = bench::random(rows, k);
  const auto chosen = bench::random_ids(m.n_routed_experts, rows, k);
  workspace scratch;
  bench::measure(state, [&] {
    route<float>::backward(bench::policy(), scratch, {logits, bias, {}, {}, m.routed_scaling_factor},
                           {chosen}, {dweights}, {dlogits});
  });
  bench::report_floats(state, rows * (m.n_routed_experts + 4 * k));
}

const bool added[] = {
    bench::at_every_size("route/backward", {bench::decode_rows, bench::prefill_rows}, backward),
    bench::at_every_size("route/forward", {bench::decode_rows, bench::prefill_rows}, scores),
    bench::at_every_size("route_table/forward", {bench::decode_rows, bench::prefill_rows}, table)};
}  // namespace
