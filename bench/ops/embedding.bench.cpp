// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/embedding.hpp>

#include <algorithm>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// A part of the vocabulary is enough to miss the caches.
std::int32_t vocabulary_of(const model_config& c) { return std::min(c.vocab_size, 16384); }

const bool added_backward = bench::at_every_size(
    "embedding/backward", {bench::decode_rows, bench::prefill_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t n = c.hyper_connection.hc_mult, width = c.hidden_size, rows = state.range(0);
      const auto tokens = bench::random_ids(vocabulary_of(c), rows);
      const auto table = bench::random(vocabulary_of(c), width),
                 dtable = bench::zeros(vocabulary_of(c), width);
      const auto dx = bench::random(rows, n, width);
      workspace scratch;
      bench::measure(state, [&] {
        embedding<float>::backward(bench::policy(), scratch, {tokens, table}, {dx}, {dtable});
      });
      bench::report_floats(state, rows * (n + 2) * width);
    });
const bool added = bench::at_every_size(
    "embedding/forward", {bench::decode_rows, bench::prefill_rows},
    [](benchmark::State& state, const model_config& c) {
      const std::int64_t n = c.hyper_connection.hc_mult, width = c.hidden_size, rows = state.range(0);
      const auto tokens = bench::random_ids(vocabulary_of(c), rows);
      const auto table = bench::random(vocabulary_of(c), width);
      const auto x = bench::zeros(rows, n, width);
      bench::measure(state, [&] { embedding<float>::forward(bench::policy(), {tokens, table}, {x}); });
      bench::report_floats(state, rows * (n + 1) * width);
    });
}  // namespace
