// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/index_topk.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// Queries at the end of a context of `context` tokens.
void index_topk_float(benchmark::State& state) {
  constexpr attention_config a = bench::config.attention;
  const std::int64_t rows = state.range(0), context = state.range(1), ratio = a.csa_compress_ratio;
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
BENCHMARK(index_topk_float)
    ->ArgNames({"rows", "context"})
    ->Args({bench::decode_rows, 512})
    ->Args({bench::decode_rows, 16384})
    ->Args({bench::prefill_rows, 512})
    ->Args({bench::prefill_rows, 4096})
    ->UseRealTime();
}  // namespace
