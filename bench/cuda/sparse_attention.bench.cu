// SPDX-License-Identifier: Apache-2.0
// The last queries of a context, as a layer of each kind asks for them.
#include <dsv4/ops/cuda/sparse_attention.cuh>

#include <algorithm>
#include <cmath>
#include <support/device.cuh>
#include <support/work.hpp>

namespace {
using namespace dsv4;
using bench::D;

void attend(benchmark::State& state, const model_config& c, attention_kind kind, bool backward,
            exec::sum_order sums = exec::sum_order::fixed) {
  const attention_config& a = c.attention;
  const std::int64_t rows = state.range(0), context = state.range(1), first = context - rows,
                     oldest = std::max<std::int64_t>(0, first - a.sliding_window + 1),
                     ratio = a.compress_ratio(kind), entries = ratio ? context / ratio : 0,
                     heads = a.num_attention_heads, width = a.head_dim;
  const auto q = bench::random(rows, heads, width), o = bench::zeros(rows, heads, width);
  const auto local = bench::random(context - oldest, width), compressed = bench::random(entries, width);
  const auto sinks = bench::random(heads);
  const std::int64_t k = kind == attention_kind::csa && entries > a.index_topk ? a.index_topk : 0;
  const auto selected = bench::filled<std::int32_t>(
      [&](const matrix_view<std::int32_t>& to) {
        for (std::int64_t t = 0; k > 0 && t < rows; ++t)
          for (std::int64_t j = 0; j < k; ++j) to(t, j) = bench::seen(a, kind, first + t).entry(j);
      },
      k > 0 ? rows : 0, k);
  const sparse_attention<bf16, D>::inputs in{
      q,     local,  compressed,       selected, sinks,
      first, oldest, a.sliding_window, ratio,    1 / std::sqrt(double(width))};
  const double products = bench::keys_of(a, kind, first, rows) * double(heads * width);
  if (!backward) {
    bench::measure(state, [&] { sparse_attention<bf16, D>::forward(bench::policy(), in, {o}); });
    bench::report_flops(state, 4 * products);
    bench::report_elements(state, 2 * rows * heads * width);
    return;
  }
  const auto lse = bench::zeros<float>(rows, heads);
  const auto d_o = bench::random(rows, heads, width), dq = bench::zeros(rows, heads, width);
  const auto dlocal = bench::zeros(context - oldest, width), dcompressed = bench::zeros(entries, width);
  const auto dsinks = bench::zeros(heads);
  device_workspace scratch;
  sparse_attention<bf16, D>::forward(bench::policy(), in, {o}, {lse, {}});
  bench::measure(state, [&] {
    sparse_attention<bf16, D>::backward(bench::policy(sums), scratch, in, {lse, o}, {d_o},
                                        {dq, dlocal, dcompressed, dsinks});
  });
  bench::report_flops(state, 10 * products);
  bench::report_elements(state, 4 * rows * heads * width);
}

const bool added = [] {
  const std::pair<const char*, attention_kind> kinds[] = {
      {"sliding", attention_kind::sliding}, {"csa", attention_kind::csa}, {"hca", attention_kind::hca}};
  for (const auto& [name, kind] : kinds) {
    const std::string op = std::string("sparse_attention_") + name;
    bench::at_every_context(op + "/forward",
                            {{bench::prompt_rows, bench::prompt_rows},
                             {bench::prompt_rows, 60000 + bench::prompt_rows},
                             {bench::decode_rows, 60000},
                             {bench::decode_rows, 1000000}},
                            [kind = kind](auto& state, auto& c) { attend(state, c, kind, false); });
    bench::at_every_context(op + "/backward", {{bench::prompt_rows, bench::prompt_rows}},
                            [kind = kind](auto& state, auto& c) { attend(state, c, kind, true); });
    bench::at_every_context(
        op + "/backward_in_any_order", {{bench::prompt_rows, bench::prompt_rows}},
        [kind = kind](auto& state, auto& c) { attend(state, c, kind, true, exec::sum_order::any); });
  }
  return true;
}();
}  // namespace
