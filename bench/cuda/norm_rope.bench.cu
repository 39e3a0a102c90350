// SPDX-License-Identifier: Apache-2.0
// The queries of a layer, normalised and rotated in one pass.
#include <dsv4/ops/cuda/norm_rope.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added = bench::at_every_size(
    "norm_rope/forward", {bench::decode_rows, bench::prompt_rows},
    [](benchmark::State& state, const model_config& c) {
      const attention_config& a = c.attention;
      const std::int64_t rows = state.range(0), heads = a.num_attention_heads, width = a.head_dim;
      const auto x = bench::random(rows, heads, width), y = bench::zeros(rows, heads, width);
      const rope_frequencies frequencies = layer_rope_frequencies(a, attention_kind::csa);
      bench::measure(state, [&] {
        norm_rope<bf16, D>::forward(bench::policy(), {x, {}, c.rms_norm_eps, frequencies, 512}, {y});
      });
      bench::report_elements(state, 2 * rows * heads * width);
    });
}  // namespace
