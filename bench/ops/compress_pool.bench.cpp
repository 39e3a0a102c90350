// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/compress_pool.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// All entries of a prefill.
void pool(benchmark::State& state, attention_kind kind) {
  constexpr attention_config a = bench::config.attention;
  const bool overlap = kind == attention_kind::csa;
  const std::int64_t rows = bench::prefill_rows, m = a.compress_ratio(kind),
                     width = a.head_dim * (overlap ? 2 : 1);
  const auto kv = bench::random(rows, width), gate = bench::random(rows, width),
             bias = bench::random(m, width), y = bench::zeros(rows / m, a.head_dim);
  bench::measure(state, [&] {
    compress_pool<float>::forward(bench::policy(), {kv, gate, bias, 0, 0, overlap}, {y});
  });
  bench::report_floats(state, 2 * rows * width + m * width + rows / m * a.head_dim);
}
BENCHMARK_CAPTURE(pool, csa, attention_kind::csa)->UseRealTime();
BENCHMARK_CAPTURE(pool, hca, attention_kind::hca)->UseRealTime();
}  // namespace
