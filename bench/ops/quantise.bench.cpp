// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/round_trip.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void store(benchmark::State& state, block_format format, std::int64_t width) {
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, width);
  bench::measure(state, [&] { round_trip<F, float>::forward(bench::policy(), {}, {x}); });
  bench::report_floats(state, 2 * rows * width);
}
BENCHMARK_CAPTURE(store, fp8_kv, block_format::fp8_kv, bench::config.attention.head_dim)
    ->Apply(bench::decode_and_prefill);
BENCHMARK_CAPTURE(store, mxfp4, block_format::mxfp4, bench::config.attention.index_head_dim)
    ->Apply(bench::decode_and_prefill);
}  // namespace
