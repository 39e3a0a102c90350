// SPDX-License-Identifier: Apache-2.0
// Queries at the end of a context.
#include <dsv4/ops/cuda/index_topk.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added = bench::at_every_context(
    "index_topk/forward",
    {{bench::prompt_rows, bench::prompt_rows},
     {2048, 16384},
     {bench::decode_rows, 65536},
     {bench::decode_rows, 1000000}},
    [](benchmark::State& state, const model_config& c) {
      const attention_config& a = c.attention;
      const std::int64_t rows = state.range(0), context = state.range(1), first = context - rows,
                         ratio = a.csa_compress_ratio, heads = a.index_n_heads, width = a.index_head_dim;
      const auto q = bench::random(rows, heads, width);
      const auto keys = bench::random(context / ratio, width), weights = bench::random(rows, heads);
      const auto selected = bench::zeros<std::int32_t>(rows, a.index_topk);
      bench::measure(state, [&] {
        index_topk<bf16, D>::forward(bench::policy(), {q, keys, weights, first, ratio}, {selected});
      });
      double visible = 0;
      for (std::int64_t t = first; t < context; ++t) visible += double((t + 1) / ratio);
      bench::report_flops(state, 2 * visible * double(heads * width));
      bench::report_elements(state, rows * heads * width + context / ratio * width);
    });
}  // namespace
