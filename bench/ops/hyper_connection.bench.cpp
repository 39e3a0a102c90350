// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/hyper_connection.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;
constexpr std::int64_t n = config.hyper_connection.hc_mult, width = config.hidden_size;

void gates(benchmark::State& state) {
  constexpr hyper_connection_config h = config.hyper_connection;
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, n, width), comb = bench::zeros(rows, n, n);
  const auto z = bench::random(rows, h.mixes()), pre = bench::zeros(rows, n), post = bench::zeros(rows, n);
  const auto base = bench::random(h.mixes()), scale = bench::random(3);
  bench::measure(state, [&] {
    hyper_connection_gates<float>::forward(
        bench::policy(), {x, z, base, scale, config.rms_norm_eps, h.hc_eps, h.hc_sinkhorn_iters},
        {pre, post, comb});
  });
  bench::report_floats(state, rows * (n * width + 2 * h.mixes()));
}
BENCHMARK(gates)->Apply(bench::decode_and_prefill);

void collapse(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, n, width);
  const auto pre = bench::random(rows, n), u = bench::zeros(rows, width);
  bench::measure(state, [&] { hyper_connection_collapse<float>::forward(bench::policy(), {x, pre}, {u}); });
  bench::report_floats(state, rows * (n + 1) * width);
}
BENCHMARK(collapse)->Apply(bench::decode_and_prefill);

void expand(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, n, width), comb = bench::random(rows, n, n),
             y = bench::zeros(rows, n, width);
  const auto v = bench::random(rows, width), post = bench::random(rows, n);
  bench::measure(state, [&] {
    hyper_connection_expand<float>::forward(bench::policy(), {x, v, post, comb}, {y});
  });
  bench::report_floats(state, rows * (2 * n + 1) * width);
}
BENCHMARK(expand)->Apply(bench::decode_and_prefill);
}  // namespace
