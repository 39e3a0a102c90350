// SPDX-License-Identifier: Apache-2.0
#include <dsv4/blocks/moe.hpp>
#include <dsv4/model/parameters.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

/// A model of one layer, for its weights.
constexpr model_config one_layer = [] {
  model_config c = config;
  c.vocab_size = 16;
  c.layers = schedule({attention_kind::sliding});
  c.moe.num_hash_layers = 0;
  c.num_nextn_predict_layers = 0;
  return c;
}();

void moe_learned(benchmark::State& state) {
  constexpr moe_config m = config.moe;
  constexpr std::int64_t width = config.hidden_size;
  parameter_store<one_layer, float> weights;
  initialise_by_name(weights);
  workspace scratch;
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, width), y = bench::zeros(rows, width);
  bench::measure(state, [&] {
    moe<m, float, space::host>(bench::policy(), scratch, weights.views().layers.front().ffn, {}, x, y);
  });
  const std::int64_t products =
      (m.num_experts_per_tok + m.n_shared_experts) * 3 * width * m.moe_intermediate_size +
      m.n_routed_experts * width;
  bench::report_flops(state, 2.0 * double(rows) * double(products));
  bench::report_rows(state, rows);
}
BENCHMARK(moe_learned)->Apply(bench::decode_and_prefill);
}  // namespace
