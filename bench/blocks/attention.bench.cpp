// SPDX-License-Identifier: Apache-2.0
// The attention sublayer of each kind: 512 tokens at once, and one token after 512.
#include <dsv4/blocks/attention.hpp>
#include <dsv4/model/parameters.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

/// A model of one layer of that kind, for its weights.
template <attention_kind K>
constexpr model_config one_layer = [] {
  model_config c = config;
  c.vocab_size = 16;
  c.layers = schedule({K});
  c.moe.num_hash_layers = 0;
  c.num_nextn_predict_layers = 0;
  return c;
}();

template <attention_kind K>
void layer(benchmark::State& state) {
  constexpr std::int64_t context = bench::prefill_rows;
  parameter_store<one_layer<K>, float> weights;
  initialise_by_name(weights);
  const auto& parameters = weights.views().layers.front().attention;
  workspace scratch;
  attention_cache<float> cache(config.attention, K, 0);
  cache.reserve(bench::policy(), context + 1, 0);
  const auto x = bench::random(context, config.hidden_size), y = bench::zeros(context, config.hidden_size);
  const auto run = [&](std::int64_t position, std::int64_t rows) {
    const attention_segment<float> segment{&cache, position, 0, rows};
    attention<config.attention, numerics::float32, float, space::host>(
        bench::policy(), scratch, parameters, config.rms_norm_eps, std::span(&segment, 1),
        matrix_view<const float>(x.v.rows(0, rows)), y.v.rows(0, rows));
  };
  const std::int64_t rows = state.range(0);
  run(0, context);  // what a decode step finds
  // The cache holds positions, not a length: the same step can be repeated.
  bench::measure(state, [&] { run(rows == context ? 0 : context, rows); });
  bench::report_rows(state, rows);
}
BENCHMARK_TEMPLATE(layer, attention_kind::sliding)
    ->Name("attention/sliding")
    ->Apply(bench::decode_and_prefill);
BENCHMARK_TEMPLATE(layer, attention_kind::csa)->Name("attention/csa")->Apply(bench::decode_and_prefill);
BENCHMARK_TEMPLATE(layer, attention_kind::hca)->Name("attention/hca")->Apply(bench::decode_and_prefill);
}  // namespace
