// SPDX-License-Identifier: Apache-2.0
// The queries of a compressed layer. Backward is the same rotation.
#include <dsv4/ops/cuda/rope.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added = bench::at_every_size(
    "rope/forward", {bench::decode_rows, bench::prompt_rows},
    [](benchmark::State& state, const model_config& c) {
      const attention_config& a = c.attention;
      const std::int64_t rows = state.range(0);
      const auto x = bench::random(rows, a.num_attention_heads, a.head_dim);
      const rope_frequencies frequencies = layer_rope_frequencies(a, attention_kind::csa);
      bench::measure(state, [&] { rope<bf16, D>::forward(bench::policy(), {frequencies, 512}, {x}); });
      bench::report_elements(state, 2 * rows * a.num_attention_heads * a.qk_rope_head_dim);
    });
}  // namespace
