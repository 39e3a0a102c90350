// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/swiglu.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
constexpr moe_config m = bench::config.moe;

/// The routed experts' rows, k per token.
void swiglu_routed(benchmark::State& state) {
  const std::int64_t rows = state.range(0) * m.num_experts_per_tok, width = m.moe_intermediate_size;
  const auto gate = bench::random(rows, width), up = bench::random(rows, width),
             h = bench::zeros(rows, width);
  const auto weight = bench::random(rows);
  bench::measure(state, [&] {
    swiglu<float>::forward(bench::policy(), {gate, up, weight, m.swiglu_limit}, {h});
  });
  bench::report_floats(state, 3 * rows * width + rows);
}
BENCHMARK(swiglu_routed)->Apply(bench::decode_and_prefill);
}  // namespace
