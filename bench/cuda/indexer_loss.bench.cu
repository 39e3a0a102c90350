// SPDX-License-Identifier: Apache-2.0
// The indexer's loss over all visible entries (the dense warm-up) at the end of a context.
#include <dsv4/ops/cuda/indexer_loss.cuh>

#include <cmath>
#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

void loss(benchmark::State& state, const model_config& c, bool backward) {
  const attention_config& a = c.attention;
  const std::int64_t rows = state.range(0), context = state.range(1), first = context - rows,
                     ratio = a.csa_compress_ratio, entries = context / ratio, heads = a.index_n_heads,
                     width = a.index_head_dim;
  const auto q = bench::random(rows, a.num_attention_heads, a.head_dim),
             index_q = bench::random(rows, heads, width), dindex_q = bench::zeros(rows, heads, width);
  const auto compressed = bench::random(entries, a.head_dim), keys = bench::random(entries, width),
             dkeys = bench::zeros(entries, width), weights = bench::random(rows, heads),
             dweights = bench::zeros(rows, heads);
  const auto losses = bench::zeros(rows), dloss = bench::random(rows);
  const indexer_loss<bf16, D>::inputs in{q,
                                         compressed,
                                         {},
                                         index_q,
                                         keys,
                                         weights,
                                         {},
                                         first,
                                         ratio,
                                         1 / std::sqrt(double(a.head_dim)),
                                         1 / std::sqrt(double(heads * width))};
  device_workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      indexer_loss<bf16, D>::backward(bench::policy(), scratch, in, {dloss}, {dindex_q, dkeys, dweights});
    else
      indexer_loss<bf16, D>::forward(bench::policy(), in, {losses});
  });
  double visible = 0;
  for (std::int64_t t = first; t < context; ++t) visible += double((t + 1) / ratio);
  const double main = double(a.num_attention_heads) * a.head_dim, index = double(heads * width);
  bench::report_flops(state, 2.0 * visible * (main + (backward ? 3 : 1) * index));
}

const bool added = bench::at_every_context("indexer_loss/forward", {{64, 2048}, {2048, 4096}},
                                           [](auto& state, auto& c) { loss(state, c, false); }) &&
                   bench::at_every_context("indexer_loss/backward", {{64, 2048}, {2048, 4096}},
                                           [](auto& state, auto& c) { loss(state, c, true); });
}  // namespace
