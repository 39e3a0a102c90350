// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/hadamard.hpp>

#include <bit>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// The indexer's queries, every head a row.
void hadamard_index_queries(benchmark::State& state) {
  constexpr std::int64_t width = bench::config.attention.index_head_dim;
  const std::int64_t rows = state.range(0) * bench::config.attention.index_n_heads;
  const auto x = bench::random(rows, width);
  bench::measure(state, [&] { hadamard<float>::forward(bench::policy(), {}, {x}); });
  bench::report_flops(state, double(rows * width * std::countr_zero(std::uint64_t{width})));
  bench::report_floats(state, 2 * rows * width);
}
BENCHMARK(hadamard_index_queries)->Apply(bench::decode_and_prefill);
}  // namespace
