// SPDX-License-Identifier: Apache-2.0
// The indexer's queries, every head a row. Backward is the same transform.
#include <dsv4/ops/cuda/hadamard.cuh>

#include <bit>
#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added = bench::at_every_size(
    "hadamard/forward", {bench::decode_rows, bench::prompt_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t width = c.attention.index_head_dim,
                         rows = state.range(0) * c.attention.index_n_heads;
      const auto x = bench::random(rows, width);
      bench::measure(state, [&] { hadamard<bf16, D>::forward(bench::policy(), {}, {x}); });
      bench::report_flops(state, double(rows * width) * std::countr_zero(static_cast<std::uint64_t>(width)));
      bench::report_elements(state, 2 * rows * width);
    });
}  // namespace
