// SPDX-License-Identifier: Apache-2.0
// Before each sublayer; and of every query head, without a weight.
#include <dsv4/ops/cuda/rms_norm.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

void norm(benchmark::State& state, std::int64_t rows, std::int64_t width, bool weighted, bool backward) {
  const auto x = bench::random(rows, width), y = bench::zeros(rows, width), dy = bench::random(rows, width);
  const auto weight = bench::random(width), dweight = bench::zeros(width);
  const rms_norm<bf16, D>::inputs in{x, weighted ? weight.v : vector_view<bf16, D>(), 1e-6};
  device_workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      rms_norm<bf16, D>::backward(bench::policy(), scratch, in, {dy},
                                  {y, weighted ? dweight.v : vector_view<bf16, D>()});
    else
      rms_norm<bf16, D>::forward(bench::policy(), in, {y});
  });
  bench::report_elements(state, (backward ? 3 : 2) * rows * width);
}

const bool added = [] {
  for (const bool backward : {false, true}) {
    const std::string pass = backward ? "/backward" : "/forward";
    bench::at_every_size("rms_norm" + pass, {bench::decode_rows, bench::prompt_rows},
                         [backward](benchmark::State& state, const model_config& c) {
                           norm(state, state.range(0), c.hidden_size, true, backward);
                         });
    bench::at_every_size("rms_norm_heads" + pass, {bench::decode_rows, bench::prompt_rows},
                         [backward](benchmark::State& state, const model_config& c) {
                           norm(state, state.range(0) * c.attention.num_attention_heads, c.attention.head_dim,
                                false, backward);
                         });
  }
  return true;
}();
}  // namespace
