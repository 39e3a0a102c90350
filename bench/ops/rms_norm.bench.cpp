// SPDX-License-Identifier: Apache-2.0
// Before each sublayer; and of every query head, without a weight.
#include <dsv4/ops/rms_norm.hpp>

#include <string>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void norm(benchmark::State& state, std::int64_t rows, std::int64_t width, bool weighted, bool backward) {
  const auto x = bench::random(rows, width), y = bench::random(rows, width),
             dx = bench::zeros(backward ? rows : 0, width);
  const auto weight = bench::random(weighted ? width : 0), dweight = bench::zeros(weighted ? width : 0);
  const vector_view<float> w = weighted ? weight.v : vector_view<float>();
  const vector_view<float> dw = weighted ? dweight.v : vector_view<float>();
  workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      rms_norm<float>::backward(bench::policy(), scratch, {x, w, 1e-6}, {y}, {dx, dw});
    else
      rms_norm<float>::forward(bench::policy(), {x, w, 1e-6}, {y});
  });
  bench::report_floats(state, (backward ? 3 : 2) * rows * width);
}

constexpr auto rows = {bench::decode_rows, bench::prefill_rows};
const bool added = [] {
  for (const bool backward : {false, true}) {
    const std::string pass = backward ? "/backward" : "/forward";
    bench::at_every_size("rms_norm" + pass, rows, [=](auto& state, const model_config& c) {
      norm(state, state.range(0), c.hidden_size, true, backward);
    });
    bench::at_every_size("rms_norm_heads" + pass, rows, [=](auto& state, const model_config& c) {
      norm(state, state.range(0) * c.attention.num_attention_heads, c.attention.head_dim, false, backward);
    });
  }
  return true;
}();
}  // namespace
