// SPDX-License-Identifier: Apache-2.0
// The attention sublayer of each kind in training, in bf16: a document forward into a context; and that with
// backward out of it, with the gradients of all weights.
#include <dsv4/blocks/attention_backward.hpp>
#include <dsv4/cuda.cuh>

#include <support/device_weights.cuh>
#include <support/work.hpp>

namespace {
using namespace dsv4;
using bench::D;

template <model_config C, attention_kind K>
void train(benchmark::State& state, bool with_backward, exec::sum_order sums = exec::sum_order::fixed) {
  constexpr numerics_config Q = numerics::float32;
  constexpr model_config one = bench::attention_layer<C, K>;
  const bench::random_weights<one, Q> weights;
  parameter_store<one, bf16, Q, D> gradients;
  const auto& parameters = weights.layer().attention;
  const auto& d = gradients.views().layers.front().attention;
  const std::int64_t rows = state.range(0), width = C.hidden_size;
  const auto x = bench::random(rows, width), dy = bench::random(rows, width), y = bench::zeros(rows, width),
             dx = bench::zeros(rows, width);
  const attention_segment<bf16, D> document{nullptr, 0, 0, rows};
  const std::span<const attention_segment<bf16, D>> segments(&document, 1);
  device_workspace scratch, kept;
  const auto context = attention_context<bf16, D>::take(kept, C.attention, K, {}, segments, rows);
  bench::measure(state, [&] {
    attention<C.attention, Q, bf16, D>(bench::policy(), scratch, parameters, C.rms_norm_eps, segments, x, y.v,
                                       &context);
    if (with_backward)
      attention_backward<C.attention, Q, bf16, D>(bench::policy(sums), scratch, parameters, C.rms_norm_eps,
                                                  segments, x, context, dy, d, dx.v);
  });
  bench::report_flops(state, (with_backward ? 3 : 1) * bench::attention_flops(C, K, 0, rows));
}

template <attention_kind K>
bool add(const std::string& name) {
  bench::at_device_sizes(name + "/training_forward", {bench::prompt_rows},
                         [](benchmark::State& state, auto of) { train<of.config, K>(state, false); });
  bench::at_device_sizes(name + "/training", {bench::prompt_rows},
                         [](benchmark::State& state, auto of) { train<of.config, K>(state, true); });
  bench::at_device_sizes(
      name + "/training_in_any_order", {bench::prompt_rows},
      [](benchmark::State& state, auto of) { train<of.config, K>(state, true, exec::sum_order::any); });
  return true;
}
const bool added[] = {add<attention_kind::sliding>("attention_sliding"),
                      add<attention_kind::csa>("attention_csa"), add<attention_kind::hca>("attention_hca")};
}  // namespace
