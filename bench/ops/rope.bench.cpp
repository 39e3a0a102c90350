// SPDX-License-Identifier: Apache-2.0
// The queries of a compressed layer.
#include <dsv4/ops/rope.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// In place, as attention does.
void turn(benchmark::State& state, const model_config& c, bool backward) {
  const attention_config& a = c.attention;
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, a.num_attention_heads, a.head_dim);
  const rope_frequencies frequencies = layer_rope_frequencies(a, attention_kind::csa);
  workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      rope<float>::backward(bench::policy(), scratch, {frequencies, 512}, {x}, {x});
    else
      rope<float>::forward(bench::policy(), {frequencies, 512}, {x});
  });
  bench::report_floats(state, 2 * rows * a.num_attention_heads * a.qk_rope_head_dim);
}

constexpr auto rows = {bench::decode_rows, bench::prefill_rows};
const bool added =
    bench::at_every_size("rope/forward", rows, [](auto& state, auto& c) { turn(state, c, false); }) &&
    bench::at_every_size("rope/backward", rows, [](auto& state, auto& c) { turn(state, c, true); });
}  // namespace
