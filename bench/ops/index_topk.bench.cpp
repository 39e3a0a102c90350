// SPDX-License-Identifier: Apache-2.0
// Queries at the end of a context.
#include <dsv4/ops/index_topk.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void select(benchmark::State& state, const model_config& c, std::int64_t context) {
  const attention_config& a = c.attention;
  const std::int64_t rows = state.range(0), ratio = a.csa_compress_ratio;
  const auto q = bench::random(rows, a.index_n_heads, a.index_head_dim);
  const auto keys = bench::random(context / ratio, a.index_head_dim),
             weights = bench::random(rows, a.index_n_heads);
  const auto selected = bench::zeros<std::int32_t>(rows, a.index_topk);
  const std::int64_t first = context - rows;
  bench::measure(state, [&] {
    index_topk<float>::forward(bench::policy(), {q, keys, weights, first, ratio}, {selected});
  });
  double visible = 0;
  for (std::int64_t t = 0; t < rows; ++t) visible += double((first + t + 1) / ratio);
  bench::report_flops(state, 2 * visible * a.index_n_heads * a.index_head_dim);
}

const bool added = [] {
  for (const std::int64_t context : {16384, 65536})
    bench::at_every_size("index_topk_" + std::to_string(context) + "/forward", {bench::decode_rows, 64},
                         [context](auto& state, auto& c) { select(state, c, context); });
  return true;
}();
}  // namespace
