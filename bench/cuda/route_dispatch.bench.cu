// SPDX-License-Identifier: Apache-2.0
// Choosing experts and sorting tokens by them; of one token in one launch.
#include <dsv4/ops/cuda/route_dispatch.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added =
    bench::at_every_size("route_dispatch/forward", {bench::decode_rows, bench::prompt_rows},
                         [](benchmark::State& state, const model_config& c) {
                           const moe_config& m = c.moe;
                           const std::int64_t rows = state.range(0), k = m.num_experts_per_tok,
                                              count = m.n_routed_experts, width = c.hidden_size;
                           const auto x = bench::random(rows, width), logits = bench::random(rows, count),
                                      weights = bench::zeros(rows, k), sorted = bench::zeros(rows * k, width);
                           const auto bias = bench::zeros(count), weight_sorted = bench::zeros(rows * k);
                           const auto experts = bench::zeros<std::int32_t>(rows, k);
                           const auto offsets = bench::zeros<std::int64_t>(count + 1),
                                      order = bench::zeros<std::int64_t>(rows * k);
                           bench::measure(state, [&] {
                             route_dispatch<bf16, D>::forward(
                                 bench::policy(), {{logits, bias, {}, {}, m.routed_scaling_factor}, x},
                                 {{experts, weights}, {offsets, order, sorted, weight_sorted}});
                           });
                           bench::report_elements(state, rows * (count + (k + 1) * width));
                         });
}  // namespace
