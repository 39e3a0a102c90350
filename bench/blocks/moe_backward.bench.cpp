// SPDX-License-Identifier: Apache-2.0
// The mixture of experts with learned routing in training: forward into a context, and backward out of it.
#include <dsv4/blocks/moe_backward.hpp>

#include <support/weights.hpp>

namespace {
using namespace dsv4;

const bool added =
    bench::at_float_sizes("moe/training", {bench::prefill_rows}, []<model_config C>(benchmark::State& state) {
      constexpr model_config one = bench::one_layer<C, attention_kind::sliding>;
      constexpr numerics_config Q = numerics::float32;
      const bench::random_weights<one, Q> weights;
      parameter_store<one, float> gradients;
      const auto& parameters = weights.layer().ffn;
      const auto& d = gradients.views().layers.front().ffn;
      const std::int64_t rows = state.range(0), width = C.hidden_size;
      const auto x = bench::random(rows, width), dy = bench::random(rows, width);
      const auto y = bench::zeros(rows, width), dx = bench::zeros(rows, width);
      workspace scratch;
      bench::measure(state, [&] {
        const workspace_scope scope(scratch);
        const auto kept = moe_context<float>::take(scratch, C.moe, rows);
        moe<C.moe, Q, float, space::host>(bench::policy(), scratch, parameters, {}, x, y.v, &kept);
        moe_backward<C.moe, Q, float, space::host>(bench::policy(), scratch, parameters, x, kept, dy, d,
                                                   dx.v);
      });
      bench::report_rows(state, rows);
    });
}  // namespace
