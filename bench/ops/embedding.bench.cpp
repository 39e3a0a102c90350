// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/embedding.hpp>

#include <algorithm>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// A part of the vocabulary is enough to miss the caches.
void embed(benchmark::State& state, const model_config& c, bool backward) {
  const std::int64_t n = c.hyper_connection.hc_mult, width = c.hidden_size, rows = state.range(0);
  const std::int32_t vocabulary = std::min(c.vocab_size, 16384);
  const auto tokens = bench::random_ids(vocabulary, rows);
  const auto table = bench::random(vocabulary, width),
             dtable = bench::zeros(backward ? vocabulary : 0, width);
  const auto x = bench::random(rows, n, width);
  workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      embedding<float>::backward(bench::policy(), scratch, {tokens, table}, {x}, {dtable});
    else
      embedding<float>::forward(bench::policy(), {tokens, table}, {x});
  });
  bench::report_floats(state, rows * (n + (backward ? 2 : 1)) * width);
}

constexpr auto rows = {bench::decode_rows, bench::prefill_rows};
const bool added =
    bench::at_every_size("embedding/forward", rows, [](auto& state, auto& c) { embed(state, c, false); }) &&
    bench::at_every_size("embedding/backward", rows, [](auto& state, auto& c) { embed(state, c, true); });
}  // namespace
