// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/embedding.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

void embedding_float(benchmark::State& state) {
  constexpr std::int64_t n = config.hyper_connection.hc_mult, width = config.hidden_size;
  const std::int64_t rows = state.range(0);
  const auto tokens = bench::random_ids(config.vocab_size, rows);
  const auto table = bench::random(config.vocab_size, width);
  const auto x = bench::zeros(rows, n, width);
  bench::measure(state, [&] { embedding<float>::forward(bench::policy(), {tokens, table}, {x}); });
  bench::report_floats(state, rows * (n + 1) * width);
}
BENCHMARK(embedding_float)->Apply(bench::decode_and_prefill);
}  // namespace
