// SPDX-License-Identifier: Apache-2.0
// The indexer's queries, every head a row.
#include <dsv4/ops/hadamard.hpp>

#include <bit>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

const bool added_backward = bench::at_every_size(
    "hadamard/backward", {bench::decode_rows, bench::prefill_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t width = c.attention.index_head_dim,
                         rows = state.range(0) * c.attention.index_n_heads;
      const auto dy = bench::random(rows, width), dx = bench::zeros(rows, width);
      workspace scratch;
      bench::measure(state, [&] { hadamard<float>::backward(bench::policy(), scratch, {}, {dy}, {dx}); });
      bench::report_flops(state, double(rows * width) * std::countr_zero(static_cast<std::uint64_t>(width)));
      bench::report_floats(state, 2 * rows * width);
    });
const bool added = bench::at_every_size(
    "hadamard/forward", {bench::decode_rows, bench::prefill_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t width = c.attention.index_head_dim,
                         rows = state.range(0) * c.attention.index_n_heads;
      const auto x = bench::random(rows, width);
      bench::measure(state, [&] { hadamard<float>::forward(bench::policy(), {}, {x}); });
      bench::report_flops(state, double(rows * width) * std::countr_zero(static_cast<std::uint64_t>(width)));
      bench::report_floats(state, 2 * rows * width);
    });
}  // namespace
