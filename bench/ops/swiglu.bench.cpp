// SPDX-License-Identifier: Apache-2.0
// The routed experts' rows, k per token.
#include <dsv4/ops/swiglu.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

const bool added = bench::at_every_size(
    "swiglu/forward", {bench::decode_rows, bench::prefill_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t rows = state.range(0) * c.moe.num_experts_per_tok,
                         width = c.moe.moe_intermediate_size;
      const auto gate = bench::random(rows, width), up = bench::random(rows, width),
                 h = bench::zeros(rows, width);
      const auto weight = bench::random(rows);
      bench::measure(state, [&] {
        swiglu<float>::forward(bench::policy(), {gate, up, weight, c.moe.swiglu_limit}, {h});
      });
      bench::report_floats(state, 3 * rows * width + rows);
    });

const bool backward_added = bench::at_every_size(
    "swiglu/backward", {bench::decode_rows, bench::prefill_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t rows = state.range(0) * c.moe.num_experts_per_tok,
                         width = c.moe.moe_intermediate_size;
      const auto gate = bench::random(rows, width), up = bench::random(rows, width),
                 dh = bench::random(rows, width), dgate = bench::zeros(rows, width),
                 dup = bench::zeros(rows, width);
      const auto weight = bench::random(rows), dweight = bench::zeros(rows);
      workspace scratch;
      bench::measure(state, [&] {
        swiglu<float>::backward(bench::policy(), scratch, {gate, up, weight, c.moe.swiglu_limit}, {dh},
                                {dgate, dup, dweight});
      });
      bench::report_floats(state, 5 * rows * width + 2 * rows);
    });
}  // namespace
