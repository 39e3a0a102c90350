// SPDX-License-Identifier: Apache-2.0
// The mixture of experts with learned routing in training, in bf16: forward into a context; and that with
// backward out of it, with the gradients of all weights.
#include <dsv4/blocks/moe_backward.hpp>
#include <dsv4/cuda.cuh>
#include <dsv4/exec/cuda_transfer.cuh>

#include <support/device_weights.cuh>
#include <support/work.hpp>

namespace {
using namespace dsv4;
using bench::D;

template <model_config C>
void train(benchmark::State& state, bool with_backward) {
  constexpr numerics_config Q = numerics::float32;
  constexpr model_config one = bench::one_layer<C, attention_kind::sliding>;
  const bench::random_weights<one, Q> weights;
  parameter_store<one, bf16, Q, D> gradients;
  const auto& parameters = weights.layer().ffn;
  fill(bench::policy(), parameters.gate_bias, bf16(0.0f));  // or all tokens choose the same experts
  const auto& d = gradients.views().layers.front().ffn;
  const std::int64_t rows = state.range(0), width = C.hidden_size;
  const auto x = bench::random(rows, width), dy = bench::random(rows, width), y = bench::zeros(rows, width),
             dx = bench::zeros(rows, width);
  device_workspace scratch, kept;
  const auto context = moe_context<bf16, D>::take(kept, C.moe, rows);
  bench::measure(state, [&] {
    moe<C.moe, Q, bf16, D>(bench::policy(), scratch, parameters, {}, x, y.v, &context);
    if (with_backward)
      moe_backward<C.moe, Q, bf16, D>(bench::policy(), scratch, parameters, x, context, dy, d, dx.v);
  });
  bench::report_flops(state, (with_backward ? 3 : 1) * bench::moe_flops(C, rows));
}

// V4-Pro's experts and their gradients are 101 GB in bf16.
const bool added =
    bench::at_device_sizes("moe/training_forward", {bench::prompt_rows},
                           [](benchmark::State& state, auto of) { train<of.config>(state, false); }) &&
    bench::at_device_sizes("moe/training", {bench::prompt_rows},
                           [](benchmark::State& state, auto of) { train<of.config>(state, true); });
}  // namespace
