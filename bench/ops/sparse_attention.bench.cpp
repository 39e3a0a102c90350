// SPDX-License-Identifier: Apache-2.0
// The last queries of a context, as a layer of each kind asks for them.
#include <dsv4/ops/sparse_attention.hpp>

#include <algorithm>
#include <cmath>
#include <support/fixtures.hpp>
#include <support/work.hpp>

namespace {
using namespace dsv4;

void attend(benchmark::State& state, const model_config& c, attention_kind kind, std::int64_t context,
            bool backward) {
  const attention_config& a = c.attention;
  const std::int64_t rows = state.range(0), first = context - rows;
  const std::int64_t oldest = std::max<std::int64_t>(0, first - a.sliding_window + 1);
  const std::int64_t ratio = a.compress_ratio(kind), entries = ratio ? context / ratio : 0;
  const auto q = bench::random(rows, a.num_attention_heads, a.head_dim),
             o = bench::zeros(rows, a.num_attention_heads, a.head_dim);
  const auto local = bench::random(context - oldest, a.head_dim),
             compressed = bench::random(entries, a.head_dim);
  const auto sinks = bench::random(a.num_attention_heads);
  const bool select = kind == attention_kind::csa && entries > a.index_topk;
  const auto selected = bench::zeros<std::int32_t>(select ? rows : 0, select ? a.index_topk : 0);
  const double keys = bench::keys_of(a, kind, first, rows);
  for (std::int64_t t = 0; select && t < rows; ++t)
    for (std::int64_t j = 0; j < a.index_topk; ++j)
      selected.v(t, j) = bench::seen(a, kind, first + t).entry(j);
  const double scale = 1 / std::sqrt(double(a.head_dim));
  const sparse_attention<float>::inputs in{q,     local,  compressed,       selected, sinks,
                                           first, oldest, a.sliding_window, ratio,    scale};
  if (!backward) {
    bench::measure(state, [&] { sparse_attention<float>::forward(bench::policy(), in, {o}); });
    bench::report_flops(state, 4 * keys * a.num_attention_heads * a.head_dim);
    return;
  }
  const auto lse = bench::zeros(rows, a.num_attention_heads);
  const auto d_o = bench::random(rows, a.num_attention_heads, a.head_dim),
             dq = bench::zeros(rows, a.num_attention_heads, a.head_dim);
  const auto dlocal = bench::zeros(context - oldest, a.head_dim),
             dcompressed = bench::zeros(entries, a.head_dim);
  const auto dsinks = bench::zeros(a.num_attention_heads);
  workspace scratch;
  sparse_attention<float>::forward(bench::policy(), in, {o}, {lse, {}});
  bench::measure(state, [&] {
    sparse_attention<float>::backward(bench::policy(), scratch, in, {lse, o}, {d_o},
                                      {dq, dlocal, dcompressed, dsinks});
  });
  bench::report_flops(state, 10 * keys * a.num_attention_heads * a.head_dim);
}

const bool added = [] {
  const std::pair<const char*, attention_kind> kinds[] = {
      {"sliding", attention_kind::sliding}, {"csa", attention_kind::csa}, {"hca", attention_kind::hca}};
  for (const auto& [name, kind] : kinds)
    for (const std::int64_t context : {512, 16384})
      for (const bool backward : {false, true}) {
        const std::string op = "sparse_attention_" + std::string(name) + "_" + std::to_string(context);
        bench::at_every_size(
            op + (backward ? "/backward" : "/forward"), {bench::decode_rows, 64},
            [=, kind = kind](auto& state, auto& c) { attend(state, c, kind, context, backward); });
      }
  return true;
}();
}  // namespace
