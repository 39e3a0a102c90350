// SPDX-License-Identifier: Apache-2.0
// A whole layer of each kind in a training step: forward, keeping what backward reads; and with backward and
// the gradients of all weights, which are in bf16 or in the released formats. A layer is a model of one layer
// without its loss; a row of the embedding per token and the collapse before the head come on top.
#include <dsv4/cost/flops.hpp>
#include <dsv4/cuda.cuh>
#include <dsv4/model/training.hpp>

#include <support/device_layers.cuh>

namespace {
using namespace dsv4;
using bench::D;

template <model_config C, attention_kind K, numerics_config Q>
void step(benchmark::State& state, bool with_backward) {
  constexpr model_config config = bench::whole_layer<C, K>;
  using model = training<config, bf16, Q, recompute::nothing, D>;
  const std::int64_t rows = state.range(0);
  const bench::random_weights<config, Q> weights;
  parameter_store<config, bf16, numerics::float32, D> gradients;
  const auto ids = bench::random_ids(config.vocab_size, rows);
  const auto dhidden = bench::zeros(rows, std::int64_t{config.hidden_size});
  bench::fill_random(dhidden.v.data, dhidden.v.size(), 1e-3f);
  const std::int64_t offsets[] = {0, rows};
  device_workspace kept, scratch;
  const auto context = model::context::take(kept, offsets, {});
  const typename model::inputs in{offsets, ids, ids, {}};
  bench::measure(state, [&] {
    model::forward(bench::policy(), scratch, weights.views(), in, context);
    if (with_backward)
      model::backward(bench::policy(), scratch, weights.views(), in, context, {dhidden, {}, {}},
                      gradients.views());
  });
  bench::report_flops(state, (with_backward ? 3 : 1) * double(cost::prefill_flops(C, K, rows).total().raw()));
  state.counters["kept MB"] = double(kept.high_water()) * 1e-6;
  state.counters["workspace MB"] = double(scratch.high_water()) * 1e-6;
}

template <attention_kind K, numerics_config Q>
bool add(const std::string& name) {
  for (const bool with_backward : {false, true})
    bench::at_compiled_size<v4_flash>(
        "flash", name + (with_backward ? "/training" : "/training_forward"), {bench::prompt_rows},
        [with_backward]<model_config C>(benchmark::State& state) { step<C, K, Q>(state, with_backward); });
  return true;
}
const bool added[] = {add<attention_kind::sliding, numerics::float32>("layer_sliding"),
                      add<attention_kind::csa, numerics::float32>("layer_csa"),
                      add<attention_kind::hca, numerics::float32>("layer_hca"),
                      add<attention_kind::sliding, numerics::v4_released>("layer_sliding_released"),
                      add<attention_kind::csa, numerics::v4_released>("layer_csa_released"),
                      add<attention_kind::hca, numerics::v4_released>("layer_hca_released")};
}  // namespace
