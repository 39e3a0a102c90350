// SPDX-License-Identifier: Apache-2.0
/// Rows for routed experts, sorted by expert, for the benchmarks of their products.
#pragma once

#include <support/device.cuh>
#include <support/work.hpp>

namespace dsv4::bench {

/// The matrices of all routed experts, w1 or w2, and how many rows there are for them.
struct expert_rows {
  expert_rows(const model_config& c, std::int64_t tokens, bool second)
      : count(c.moe.n_routed_experts),
        pairs(tokens * c.moe.num_experts_per_tok),
        out(second ? c.hidden_size : c.moe.moe_intermediate_size),
        in(second ? c.moe.moe_intermediate_size : c.hidden_size),
        used(std::min(count, pairs)) {}

  /// Of few rows, the number of calls that follow one another; each finds its rows at other experts.
  int calls() const { return pairs < 1000 ? 16 : 1; }
  std::vector<array<std::int64_t, 1>> offsets_of_calls() const {
    std::vector<array<std::int64_t, 1>> all;
    for (int i = 0; i < calls(); ++i) all.push_back(offsets(i));
    return all;
  }
  array<std::int64_t, 1> offsets(std::int64_t call = 0) const {
    return filled<std::int64_t>(
        [&](const vector_view<std::int64_t>& to) { spread_evenly(to, count, pairs, call * used); },
        count + 1);
  }

  std::int64_t count, pairs, out, in, used;
};

}  // namespace dsv4::bench
