// SPDX-License-Identifier: Apache-2.0
// expert_dispatch and expert_combine.
#include <dsv4/ops/expert_dispatch.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
constexpr moe_config m = bench::config.moe;
constexpr std::int64_t k = m.num_experts_per_tok, width = bench::config.hidden_size;

/// What one call of the MoE block has to sort.
struct batch {
  explicit batch(std::int64_t rows)
      : x(bench::random(rows, width)),
        weights(bench::random(rows, k)),
        experts(bench::random_ids(m.n_routed_experts, rows, k)),
        offsets(bench::zeros<std::int64_t>(m.n_routed_experts + 1)),
        order(bench::zeros<std::int64_t>(rows * k)),
        sorted(bench::zeros(rows * k, width)),
        weight_sorted(bench::zeros(rows * k)) {}
  void dispatch() const {
    expert_dispatch<float>::forward(bench::policy(), {x, experts, weights},
                                    {offsets, order, sorted, weight_sorted});
  }

  bench::array<float, 2> x, weights;
  bench::array<std::int32_t, 2> experts;
  bench::array<std::int64_t, 1> offsets, order;
  bench::array<float, 2> sorted;
  bench::array<float, 1> weight_sorted;
};

void dispatch(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const batch b(rows);
  bench::measure(state, [&] { b.dispatch(); });
  bench::report_floats(state, rows * (k + 1) * width);
}
BENCHMARK(dispatch)->Apply(bench::decode_and_prefill);

void combine(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const batch b(rows);
  b.dispatch();
  const auto out = bench::zeros(rows, width);
  const auto inverse = bench::zeros<std::int64_t>(rows * k);
  bench::measure(state, [&] {
    expert_combine<float>::forward(bench::policy(), {b.sorted, b.order, b.x}, {out, inverse});
  });
  bench::report_floats(state, rows * (k + 2) * width);
}
BENCHMARK(combine)->Apply(bench::decode_and_prefill);
}  // namespace
