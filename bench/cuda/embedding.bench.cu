// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/cuda/embedding.cuh>

#include <algorithm>
#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

/// A part of the vocabulary is enough to miss the caches.
void embed(benchmark::State& state, const model_config& c, bool backward) {
  const std::int64_t n = c.hyper_connection.hc_mult, width = c.hidden_size, rows = state.range(0);
  const std::int64_t vocabulary = std::min(c.vocab_size, 16384);
  const auto tokens = bench::random_ids(vocabulary, rows);
  const auto table = bench::random(vocabulary, width), dtable = bench::zeros(vocabulary, width);
  const auto x = bench::random(rows, n, width);
  device_workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      embedding<bf16, D>::backward(bench::policy(), scratch, {tokens, table}, {x}, {dtable});
    else
      embedding<bf16, D>::forward(bench::policy(), {tokens, table}, {x});
  });
  bench::report_elements(state, rows * (n + (backward ? 2 : 1)) * width);
}

const bool added = bench::at_every_size("embedding/forward", {bench::decode_rows, bench::prompt_rows},
                                        [](auto& state, auto& c) { embed(state, c, false); }) &&
                   bench::at_every_size("embedding/backward", {bench::prompt_rows},
                                        [](auto& state, auto& c) { embed(state, c, true); });
}  // namespace
