// SPDX-License-Identifier: Apache-2.0
// The attention sublayer of each kind in training: a document forward into a context, and backward out of it.
#include <dsv4/blocks/attention_backward.hpp>

#include <support/weights.hpp>

namespace {
using namespace dsv4;

template <attention_kind K>
bool add(const std::string& name) {
  return bench::at_float_sizes(name, {bench::prefill_rows}, []<model_config C>(benchmark::State& state) {
    constexpr model_config one = bench::one_layer<C, K>;
    constexpr numerics_config Q = numerics::float32;
    const bench::random_weights<one, Q> weights;
    parameter_store<one, float> gradients;
    const auto& parameters = weights.layer().attention;
    const auto& d = gradients.views().layers.front().attention;
    const std::int64_t rows = state.range(0), width = C.hidden_size;
    const attention_segment<float> document{nullptr, 0, 0, rows};
    const std::span<const attention_segment<float>> segments(&document, 1);
    const auto x = bench::random(rows, width), dy = bench::random(rows, width);
    const auto y = bench::zeros(rows, width), dx = bench::zeros(rows, width);
    workspace scratch;
    bench::measure(state, [&] {
      const workspace_scope scope(scratch);
      const auto kept = attention_context<float>::take(scratch, C.attention, K, {}, segments, rows);
      attention<C.attention, Q, float, space::host>(bench::policy(), scratch, parameters, C.rms_norm_eps,
                                                    segments, x, y.v, &kept);
      attention_backward<C.attention, Q, float, space::host>(bench::policy(), scratch, parameters,
                                                             C.rms_norm_eps, segments, x, kept, dy, d, dx.v);
    });
    bench::report_rows(state, rows);
  });
}
const bool added[] = {add<attention_kind::sliding>("attention_sliding/training"),
                      add<attention_kind::csa>("attention_csa/training"),
                      add<attention_kind::hca>("attention_hca/training")};
}  // namespace
