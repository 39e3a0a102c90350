// SPDX-License-Identifier: Apache-2.0
// The indexer's loss over all visible entries (the dense warm-up) at the end of a context.
#include <dsv4/ops/indexer_loss.hpp>

#include <cmath>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void loss(benchmark::State& state, const model_config& c, bool backward) {
  const attention_config& a = c.attention;
  const std::int64_t context = 2048, rows = state.range(0), entries = context / a.csa_compress_ratio;
  const auto q = bench::random(rows, a.num_attention_heads, a.head_dim),
             index_q = bench::random(rows, a.index_n_heads, a.index_head_dim),
             dindex_q = bench::zeros(rows, a.index_n_heads, a.index_head_dim);
  const auto compressed = bench::random(entries, a.head_dim), keys = bench::random(entries, a.index_head_dim),
             dkeys = bench::zeros(entries, a.index_head_dim), weights = bench::random(rows, a.index_n_heads),
             dweights = bench::zeros(rows, a.index_n_heads);
  const auto losses = bench::zeros(rows), dloss = bench::random(rows);
  const indexer_loss<float>::inputs in{q,
                                       compressed,
                                       {},
                                       index_q,
                                       keys,
                                       weights,
                                       {},
                                       context - rows,
                                       a.csa_compress_ratio,
                                       1 / std::sqrt(double(a.head_dim)),
                                       1 / std::sqrt(double(a.index_n_heads * a.index_head_dim))};
  workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      indexer_loss<float>::backward(bench::policy(), scratch, in, {dloss}, {dindex_q, dkeys, dweights});
    else
      indexer_loss<float>::forward(bench::policy(), in, {losses});
  });
  const double main = double(a.num_attention_heads) * a.head_dim,
               index = double(a.index_n_heads) * a.index_head_dim;
  bench::report_flops(state, 2.0 * double(rows * entries) * (main + (backward ? 3 : 1) * index));
}

const bool added =
    bench::at_every_size("indexer_loss/forward", {64},
                         [](benchmark::State& s, const model_config& c) { loss(s, c, false); }) &&
    bench::at_every_size("indexer_loss/backward", {64},
                         [](benchmark::State& s, const model_config& c) { loss(s, c, true); });
}  // namespace
