// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/rope.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void rope_queries(benchmark::State& state) {
  constexpr attention_config a = bench::config.attention;
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, a.num_attention_heads, a.head_dim);
  const rope_frequencies frequencies = layer_rope_frequencies(a, attention_kind::csa);
  bench::measure(state, [&] { rope<float>::forward(bench::policy(), {frequencies, 512}, {x}); });
  bench::report_floats(state, 2 * rows * a.num_attention_heads * a.qk_rope_head_dim);
}
BENCHMARK(rope_queries)->Apply(bench::decode_and_prefill);
}  // namespace
