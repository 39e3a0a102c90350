// SPDX-License-Identifier: Apache-2.0
// expert_dispatch and expert_combine.
#include <dsv4/ops/cuda/expert_dispatch.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

/// What one call of the MoE block has to sort, and what it has sorted.
struct batch {
  batch(const model_config& c, std::int64_t n)
      : rows(n),
        k(c.moe.num_experts_per_tok),
        width(c.hidden_size),
        x(bench::random(n, width)),
        out(bench::random(n, width)),
        weights(bench::random(n, k)),
        experts(bench::random_ids(c.moe.n_routed_experts, n, k)),
        offsets(bench::zeros<std::int64_t>(c.moe.n_routed_experts + 1)),
        order(bench::zeros<std::int64_t>(n * k)),
        inverse(bench::zeros<std::int64_t>(n * k)),
        sorted(bench::zeros(n * k, width)),
        weight_sorted(bench::zeros(n * k)) {
    dispatch();
  }
  void dispatch() {
    expert_dispatch<bf16, D>::forward(bench::policy(), {x, experts, weights},
                                      {offsets, order, sorted, weight_sorted});
  }
  void dispatch_backward() {
    expert_dispatch<bf16, D>::backward(bench::policy(), scratch, {x, experts, weights}, {order},
                                       {sorted, weight_sorted}, {out, weights});
  }
  void combine() { expert_combine<bf16, D>::forward(bench::policy(), {sorted, order, x}, {out, inverse}); }
  void combine_backward() {
    expert_combine<bf16, D>::backward(bench::policy(), scratch, {{}, order, {}}, {x}, {sorted});
  }

  std::int64_t rows, k, width;
  bench::array<bf16, 2> x, out, weights;
  bench::array<std::int32_t, 2> experts;
  bench::array<std::int64_t, 1> offsets, order, inverse;
  bench::array<bf16, 2> sorted;
  bench::array<bf16, 1> weight_sorted;
  device_workspace scratch;
};

/// `call` moves `extra` rows per token beside those of its experts.
auto of(void (batch::*call)(), std::int64_t extra) {
  return [=](benchmark::State& state, const model_config& c) {
    batch b(c, state.range(0));
    bench::measure(state, [&] { (b.*call)(); });
    bench::report_elements(state, b.rows * (b.k + extra) * b.width);
  };
}

const bool added[] = {
    bench::at_every_size("expert_dispatch/forward", {bench::decode_rows, bench::prompt_rows},
                         of(&batch::dispatch, 1)),
    bench::at_every_size("expert_dispatch/backward", {bench::prompt_rows}, of(&batch::dispatch_backward, 1)),
    bench::at_every_size("expert_combine/forward", {bench::decode_rows, bench::prompt_rows},
                         of(&batch::combine, 2)),
    bench::at_every_size("expert_combine/backward", {bench::prompt_rows}, of(&batch::combine_backward, 1))};
}  // namespace
