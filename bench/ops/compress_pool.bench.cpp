// SPDX-License-Identifier: Apache-2.0
// All entries of a prefill; and the one that a decoded token completes.
#include <dsv4/ops/compress_pool.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// The entries that the last `new_rows` tokens of a whole number of blocks complete.
void pool(benchmark::State& state, const model_config& c, attention_kind kind) {
  const attention_config& a = c.attention;
  const bool overlap = kind == attention_kind::csa, decode = state.range(0) == bench::decode_rows;
  const std::int64_t m = a.compress_ratio(kind), width = a.head_dim * (overlap ? 2 : 1);
  const std::int64_t entries = decode ? 1 : state.range(0) / m, first = decode && overlap ? 1 : 0;
  const std::int64_t rows = (first + entries) * m;
  const auto kv = bench::random(rows, width), gate = bench::random(rows, width),
             bias = bench::random(m, width), y = bench::zeros(entries, a.head_dim);
  bench::measure(state, [&] {
    compress_pool<float>::forward(bench::policy(), {kv, gate, bias, 0, first, overlap}, {y});
  });
  bench::report_floats(state, 2 * rows * width + m * width + entries * a.head_dim, bench::traffic::read);
}

/// Of a training document of so many tokens.
void pool_backward(benchmark::State& state, const model_config& c, attention_kind kind) {
  const attention_config& a = c.attention;
  const bool overlap = kind == attention_kind::csa;
  const std::int64_t m = a.compress_ratio(kind), width = a.head_dim * (overlap ? 2 : 1);
  const std::int64_t entries = state.range(0) / m, rows = entries * m;
  const auto kv = bench::random(rows, width), gate = bench::random(rows, width),
             bias = bench::random(m, width), dy = bench::random(entries, a.head_dim);
  const auto dkv = bench::zeros(rows, width), dgate = bench::zeros(rows, width),
             dbias = bench::zeros(m, width);
  workspace scratch;
  bench::measure(state, [&] {
    compress_pool<float>::backward(bench::policy(), scratch, {kv, gate, bias, 0, 0, overlap}, {dy},
                                   {dkv, dgate, dbias});
  });
  bench::report_floats(state, 4 * rows * width + 3 * m * width + entries * a.head_dim);
}

const bool added[] = {
    bench::at_every_size("compress_pool_csa/backward", {bench::prefill_rows},
                         [](auto& state, auto& c) { pool_backward(state, c, attention_kind::csa); }),
    bench::at_every_size("compress_pool_hca/backward", {bench::prefill_rows},
                         [](auto& state, auto& c) { pool_backward(state, c, attention_kind::hca); }),
    bench::at_every_size("compress_pool_csa/forward", {bench::decode_rows, bench::prefill_rows},
                         [](auto& state, auto& c) { pool(state, c, attention_kind::csa); }),
    bench::at_every_size("compress_pool_hca/forward", {bench::decode_rows, bench::prefill_rows},
                         [](auto& state, auto& c) { pool(state, c, attention_kind::hca); })};
}  // namespace
