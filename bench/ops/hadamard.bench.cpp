// SPDX-License-Identifier: Apache-2.0
// The indexer's queries, every head a row.
#include <dsv4/ops/hadamard.hpp>

#include <bit>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void transform(benchmark::State& state, const model_config& c, bool backward) {
  const std::int64_t width = c.attention.index_head_dim, rows = state.range(0) * c.attention.index_n_heads;
  const auto x = bench::random(rows, width), dy = bench::random(backward ? rows : 0, width);
  workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      hadamard<float>::backward(bench::policy(), scratch, {}, {dy}, {x});
    else
      hadamard<float>::forward(bench::policy(), {}, {x});
  });
  bench::report_flops(state, double(rows * width) * std::countr_zero(static_cast<std::uint64_t>(width)));
  bench::report_floats(state, 2 * rows * width);
}

constexpr auto rows = {bench::decode_rows, bench::prefill_rows};
const bool added =
    bench::at_every_size("hadamard/forward", rows,
                         [](auto& state, auto& c) { transform(state, c, false); }) &&
    bench::at_every_size("hadamard/backward", rows, [](auto& state, auto& c) { transform(state, c, true); });
}  // namespace
