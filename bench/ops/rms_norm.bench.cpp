// SPDX-License-Identifier: Apache-2.0
// Before each sublayer; and of every query head, without a weight.
#include <dsv4/ops/rms_norm.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void norm(benchmark::State& state, std::int64_t rows, std::int64_t width, bool weighted) {
  const auto x = bench::random(rows, width), y = bench::zeros(rows, width);
  const auto weight = bench::random(weighted ? width : 0);
  const vector_view<const float> w = weighted ? weight.v : vector_view<float>();
  bench::measure(state, [&] { rms_norm<float>::forward(bench::policy(), {x.v, w, 1e-6}, {y.v}); });
  bench::report_floats(state, 2 * rows * width);
}

void norm_backward(benchmark::State& state, std::int64_t rows, std::int64_t width, bool weighted) {
  const auto x = bench::random(rows, width), dy = bench::random(rows, width), dx = bench::zeros(rows, width);
  const auto weight = bench::random(weighted ? width : 0), dweight = bench::zeros(weighted ? width : 0);
  const vector_view<const float> w = weighted ? weight.v : vector_view<float>();
  const vector_view<float> dw = weighted ? dweight.v : vector_view<float>();
  workspace scratch;
  bench::measure(state, [&] {
    rms_norm<float>::backward(bench::policy(), scratch, {x, w, 1e-6}, {dy}, {dx, dw});
  });
  bench::report_floats(state, 3 * rows * width);
}

const bool added[] = {
    bench::at_every_size("rms_norm/backward", {bench::decode_rows, bench::prefill_rows},
                         [](benchmark::State& state, const model_config& c) {
                           norm_backward(state, state.range(0), c.hidden_size, true);
                         }),
    bench::at_every_size("rms_norm_heads/backward", {bench::decode_rows, bench::prefill_rows},
                         [](benchmark::State& state, const model_config& c) {
                           norm_backward(state, state.range(0) * c.attention.num_attention_heads,
                                         c.attention.head_dim, false);
                         }),
    bench::at_every_size("rms_norm/forward", {bench::decode_rows, bench::prefill_rows},
                         [](benchmark::State& state, const model_config& c) {
                           norm(state, state.range(0), c.hidden_size, true);
                         }),
    bench::at_every_size("rms_norm_heads/forward", {bench::decode_rows, bench::prefill_rows},
                         [](benchmark::State& state, const model_config& c) {
                           norm(state, state.range(0) * c.attention.num_attention_heads, c.attention.head_dim,
                                false);
                         })};
}  // namespace
