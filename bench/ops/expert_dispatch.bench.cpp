// SPDX-License-Identifier: Apache-2.0
// expert_dispatch and expert_combine.
#include <dsv4/ops/expert_dispatch.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// What one call of the MoE block has to sort.
struct batch {
  batch(const model_config& c, std::int64_t rows)
      : k(c.moe.num_experts_per_tok),
        x(bench::random(rows, c.hidden_size)),
        weights(bench::random(rows, k)),
        experts(bench::random_ids(c.moe.n_routed_experts, rows, k)),
        offsets(bench::zeros<std::int64_t>(c.moe.n_routed_experts + 1)),
        order(bench::zeros<std::int64_t>(rows * k)),
        sorted(bench::zeros(rows * k, c.hidden_size)),
        weight_sorted(bench::zeros(rows * k)) {}
  void dispatch() const {
    expert_dispatch<float>::forward(bench::policy(), {x, experts, weights},
                                    {offsets, order, sorted, weight_sorted});
  }

  std::int64_t k;
  bench::array<float, 2> x, weights;
  bench::array<std::int32_t, 2> experts;
  bench::array<std::int64_t, 1> offsets, order;
  bench::array<float, 2> sorted;
  bench::array<float, 1> weight_sorted;
};

const bool added[] = {
    bench::at_every_size(
        "expert_dispatch/backward", {bench::decode_rows, bench::prefill_rows},
        [](benchmark::State& state, const model_config& c) {
          const std::int64_t rows = state.range(0);
          const batch b(c, rows);
          b.dispatch();
          const auto dx = bench::zeros(rows, c.hidden_size), dweights = bench::zeros(rows, b.k);
          workspace scratch;
          bench::measure(state, [&] {
            expert_dispatch<float>::backward(bench::policy(), scratch, {b.x, b.experts, b.weights}, {b.order},
                                             {b.sorted, b.weight_sorted}, {dx, dweights});
          });
          bench::report_floats(state, rows * (b.k + 1) * c.hidden_size);
        }),
    bench::at_every_size(
        "expert_combine/backward", {bench::decode_rows, bench::prefill_rows},
        [](benchmark::State& state, const model_config& c) {
          const std::int64_t rows = state.range(0);
          const batch b(c, rows);
          b.dispatch();
          const auto dy = bench::zeros(rows * b.k, c.hidden_size);
          workspace scratch;
          bench::measure(state, [&] {
            expert_combine<float>::backward(bench::policy(), scratch, {b.sorted, b.order, b.x}, {b.x}, {dy});
          });
          bench::report_floats(state, rows * (b.k + 1) * c.hidden_size);
        }),
    bench::at_every_size("expert_dispatch/forward", {bench::decode_rows, bench::prefill_rows},
                         [](benchmark::State& state, const model_config& c) {
                           const batch b(c, state.range(0));
                           bench::measure(state, [&] { b.dispatch(); });
                           bench::report_floats(state, state.range(0) * 2 * b.k * c.hidden_size);
                         }),
    bench::at_every_size(
        "expert_combine/forward", {bench::decode_rows, bench::prefill_rows},
        [](benchmark::State& state, const model_config& c) {
          const std::int64_t rows = state.range(0);
          const batch b(c, rows);
          b.dispatch();
          const auto out = bench::zeros(rows, c.hidden_size);
          const auto inverse = bench::zeros<std::int64_t>(rows * b.k);
          bench::measure(state, [&] {
            expert_combine<float>::forward(bench::policy(), {b.sorted, b.order, b.x}, {out, inverse});
          });
          bench::report_floats(state, rows * (b.k + 2) * c.hidden_size);
        })};
}  // namespace
