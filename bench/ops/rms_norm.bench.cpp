// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/rms_norm.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

void rms_norm_hidden(benchmark::State& state) {
  const std::int64_t rows = state.range(0), width = config.hidden_size;
  const auto x = bench::random(rows, width), y = bench::zeros(rows, width);
  const auto weight = bench::random(width);
  bench::measure(state, [&] {
    rms_norm<float>::forward(bench::policy(), {x.v, weight.v, config.rms_norm_eps}, {y.v});
  });
  bench::report_floats(state, 2 * rows * width + width);
}
BENCHMARK(rms_norm_hidden)->Apply(bench::decode_and_prefill);

/// Of every query head, without a weight.
void rms_norm_heads(benchmark::State& state) {
  const std::int64_t rows = state.range(0) * config.attention.num_attention_heads,
                     width = config.attention.head_dim;
  const auto x = bench::random(rows, width), y = bench::zeros(rows, width);
  bench::measure(state, [&] {
    rms_norm<float>::forward(bench::policy(), {x.v, {}, config.rms_norm_eps}, {y.v});
  });
  bench::report_floats(state, 2 * rows * width);
}
BENCHMARK(rms_norm_heads)->Apply(bench::decode_and_prefill);
}  // namespace
