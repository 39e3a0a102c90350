// SPDX-License-Identifier: Apache-2.0
// What the residual streams cost around a sublayer; the sublayer itself only copies.
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/ops/copy_rows.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;
constexpr hyper_connection_config h = config.hyper_connection;
constexpr std::int64_t width = config.hidden_size;

void site(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const auto fn = bench::random(h.mixes(), h.hc_mult * width);
  const auto base = bench::random(h.mixes()), scale = bench::random(3), norm = bench::random(width);
  const auto x = bench::random(rows, h.hc_mult, width);
  const hyper_connection_parameters<float> parameters{fn, base, scale};
  workspace scratch;
  bench::measure(state, [&] {
    hyper_connection_site<h, float, space::host>(
        bench::policy(), scratch, parameters, norm, config.rms_norm_eps, x, [&](auto u, auto v) {
          copy_rows<float>::forward(bench::policy(), {u, 0, 0, rows}, {v});
        });
  });
  bench::report_rows(state, rows);
}
BENCHMARK(site)->Apply(bench::decode_and_prefill);
}  // namespace
