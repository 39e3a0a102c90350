// SPDX-License-Identifier: Apache-2.0
// What keeps experts in use: the sequence loss with its gradient, and counting what each expert got.
#include <dsv4/train/cuda/router_balance.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added[] = {
    bench::at_every_size(
        "sequence_balance/forward", {bench::prompt_rows},
        [](benchmark::State& state, const model_config& c) {
          const std::int64_t rows = state.range(0), experts = c.moe.n_routed_experts;
          const auto logits = bench::random(rows, experts), dlogits = bench::zeros(rows, experts);
          const auto chosen = bench::random_ids(experts, rows, std::int64_t{c.moe.num_experts_per_tok});
          const auto offsets = bench::filled<std::int64_t>(
              [&](const vector_view<std::int64_t>& to) { to(0) = 0, to(1) = rows / 2, to(2) = rows; }, 3);
          const auto loss = bench::zeros<double>(1);
          device_workspace scratch;
          bench::measure(state, [&] {
            sequence_balance<bf16, D>::forward(bench::policy(), scratch, {logits, chosen, offsets, 1e-4},
                                               {loss, dlogits});
          });
          bench::report_elements(state, 3 * rows * experts);
        }),
    bench::at_every_size(
        "expert_loads/forward", {bench::prompt_rows}, [](benchmark::State& state, const model_config& c) {
          const std::int64_t rows = state.range(0), k = c.moe.num_experts_per_tok;
          const auto chosen = bench::random_ids(c.moe.n_routed_experts, rows, k);
          const auto loads = bench::zeros<std::int64_t>(c.moe.n_routed_experts);
          bench::measure(state, [&] { expert_loads<D>::forward(bench::policy(), {chosen}, {loads}); });
          bench::report_elements<std::int32_t>(state, rows * k);
        })};
}  // namespace
