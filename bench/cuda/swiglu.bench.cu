// SPDX-License-Identifier: Apache-2.0
// The routed experts' rows, k per token.
#include <dsv4/ops/cuda/swiglu.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

void gate(benchmark::State& state, const model_config& c, bool backward) {
  const std::int64_t rows = state.range(0) * c.moe.num_experts_per_tok, width = c.moe.moe_intermediate_size;
  const auto gate = bench::random(rows, width), up = bench::random(rows, width),
             h = bench::random(rows, width), dgate = bench::zeros(rows, width),
             dup = bench::zeros(rows, width);
  const auto weight = bench::random(rows), dweight = bench::zeros(rows);
  const swiglu<bf16, D>::inputs in{gate, up, weight, c.moe.swiglu_limit};
  device_workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      swiglu<bf16, D>::backward(bench::policy(), scratch, in, {h}, {dgate, dup, dweight});
    else
      swiglu<bf16, D>::forward(bench::policy(), in, {h});
  });
  bench::report_elements(state, (backward ? 5 : 3) * rows * width);
}

const bool added = bench::at_every_size("swiglu/forward", {bench::decode_rows, bench::prompt_rows},
                                        [](auto& state, auto& c) { gate(state, c, false); }) &&
                   bench::at_every_size("swiglu/backward", {bench::prompt_rows},
                                        [](auto& state, auto& c) { gate(state, c, true); });
}  // namespace
