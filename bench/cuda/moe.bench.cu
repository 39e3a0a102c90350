// SPDX-License-Identifier: Apache-2.0
// The mixture of experts with learned routing, in bf16 and in the released formats.
#include <dsv4/blocks/moe.hpp>
#include <dsv4/cost/weights.hpp>
#include <dsv4/cuda.cuh>
#include <dsv4/exec/cuda_transfer.cuh>

#include <support/device_weights.cuh>
#include <support/work.hpp>

namespace {
using namespace dsv4;
using bench::D;

/// Bytes of the weights that `rows` tokens read, when each chooses at random.
template <model_config C>
double weight_bytes(const numerics_config& q, std::int64_t rows) {
  const double part = bench::experts_read(C.moe, rows) / C.moe.n_routed_experts;
  double sum = 0;
  cost::for_each_layer_weight(C, attention_kind::sliding, false, [&](const cost::weight& w) {
    const double bytes = double(cost::bytes_of(w, q, 2));
    if (w.part == cost::component::routed_experts) sum += part * bytes;
    if (w.part == cost::component::shared_expert || w.part == cost::component::router) sum += bytes;
  });
  return sum;
}

template <numerics_config Q>
bool add(const std::string& name) {
  return bench::at_device_sizes(
      name, {bench::decode_rows, bench::prompt_rows}, [](benchmark::State& state, auto of) {
        constexpr model_config C = of.config;
        const bench::random_weights<bench::one_layer<C, attention_kind::sliding>, Q> weights;
        const auto& ffn = weights.layer().ffn;
        fill(bench::policy(), ffn.gate_bias, bf16(0.0f));  // or all tokens choose the same experts
        device_workspace scratch;
        const std::int64_t rows = state.range(0), width = C.hidden_size;
        const auto x = bench::random(rows, width), y = bench::zeros(rows, width);
        bench::measure(state, [&] { moe<C.moe, Q, bf16, D>(bench::policy(), scratch, ffn, {}, x, y.v); });
        bench::report_flops(state, bench::moe_flops(C, rows));
        bench::report_bytes(state, std::int64_t(weight_bytes<C>(Q, rows)) + 4 * rows * width);
      });
}
const bool added[] = {add<numerics::float32>("moe/forward"),
                      add<numerics::v4_released>("moe_released/forward")};
}  // namespace
