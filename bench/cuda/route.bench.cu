// SPDX-License-Identifier: Apache-2.0
// Choosing experts by score, and by a table; and back to the scores.
#include <dsv4/ops/cuda/route.cuh>

#include <algorithm>
#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

void scores(benchmark::State& state, const model_config& c, bool backward) {
  const moe_config& m = c.moe;
  const std::int64_t rows = state.range(0), k = m.num_experts_per_tok;
  const auto logits = bench::random(rows, m.n_routed_experts),
             dlogits = bench::zeros(rows, m.n_routed_experts), weights = bench::random(rows, k);
  const auto bias = bench::random(m.n_routed_experts);
  const auto experts = bench::zeros<std::int32_t>(rows, k);
  const route<bf16, D>::inputs in{logits, bias, {}, {}, m.routed_scaling_factor};
  route<bf16, D>::forward(bench::policy(), in, {experts, weights});
  device_workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      route<bf16, D>::backward(bench::policy(), scratch, in, {experts}, {weights}, {dlogits});
    else
      route<bf16, D>::forward(bench::policy(), in, {experts, weights});
  });
  bench::report_elements(state, (backward ? 2 : 1) * rows * m.n_routed_experts);
}

void table(benchmark::State& state, const model_config& c) {
  const moe_config& m = c.moe;
  const std::int64_t rows = state.range(0), k = m.num_experts_per_tok,
                     vocabulary = std::min(c.vocab_size, 16384);
  const auto logits = bench::random(rows, m.n_routed_experts), weights = bench::zeros(rows, k);
  const auto ids = bench::random_ids(m.n_routed_experts, vocabulary, k);
  const auto tokens = bench::random_ids(vocabulary, rows);
  const auto experts = bench::zeros<std::int32_t>(rows, k);
  bench::measure(state, [&] {
    route<bf16, D>::forward(bench::policy(), {logits, {}, ids, tokens, m.routed_scaling_factor},
                            {experts, weights});
  });
  bench::report_elements(state, rows * 6 * k);  // half of them are of 4 bytes
}

const bool added[] = {
    bench::at_every_size("route/forward", {bench::decode_rows, bench::prompt_rows},
                         [](auto& state, auto& c) { scores(state, c, false); }),
    bench::at_every_size("route/backward", {bench::prompt_rows},
                         [](auto& state, auto& c) { scores(state, c, true); }),
    bench::at_every_size("route_table/forward", {bench::decode_rows, bench::prompt_rows}, table)};
}  // namespace
