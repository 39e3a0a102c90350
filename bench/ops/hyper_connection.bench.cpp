// SPDX-License-Identifier: Apache-2.0
// What a residual site is made of, beside its product: gates with Sinkhorn, fold, unfold.
#include <dsv4/ops/hyper_connection.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void gates(benchmark::State& state, const model_config& c) {
  const hyper_connection_config& h = c.hyper_connection;
  const std::int64_t rows = state.range(0), n = h.hc_mult, width = c.hidden_size;
  const auto x = bench::random(rows, n, width), comb = bench::zeros(rows, n, n);
  const auto z = bench::random(rows, h.mixes()), pre = bench::zeros(rows, n), post = bench::zeros(rows, n);
  const auto base = bench::random(h.mixes()), scale = bench::random(3);
  bench::measure(state, [&] {
    hyper_connection_gates<float>::forward(bench::policy(),
                                           {x, z, base, scale, c.rms_norm_eps, h.hc_eps, h.hc_sinkhorn_iters},
                                           {pre, post, comb});
  });
  bench::report_floats(state, rows * (n * width + 2 * h.mixes()), bench::traffic::read);
}

void collapse(benchmark::State& state, const model_config& c) {
  const std::int64_t rows = state.range(0), n = c.hyper_connection.hc_mult, width = c.hidden_size;
  const auto x = bench::random(rows, n, width);
  const auto pre = bench::random(rows, n), u = bench::zeros(rows, width);
  bench::measure(state, [&] { hyper_connection_collapse<float>::forward(bench::policy(), {x, pre}, {u}); });
  bench::report_floats(state, rows * (n + 1) * width);
}

void expand(benchmark::State& state, const model_config& c) {
  const std::int64_t rows = state.range(0), n = c.hyper_connection.hc_mult, width = c.hidden_size;
  const auto x = bench::random(rows, n, width), comb = bench::random(rows, n, n),
             y = bench::zeros(rows, n, width);
  const auto v = bench::random(rows, width), post = bench::random(rows, n);
  bench::measure(state, [&] {
    hyper_connection_expand<float>::forward(bench::policy(), {x, v, post, comb}, {y});
  });
  bench::report_floats(state, rows * (2 * n + 1) * width);
}

void collapse_backward(benchmark::State& state, const model_config& c) {
  const std::int64_t rows = state.range(0), n = c.hyper_connection.hc_mult, width = c.hidden_size;
  const auto x = bench::random(rows, n, width), dx = bench::zeros(rows, n, width);
  const auto pre = bench::random(rows, n), dpre = bench::zeros(rows, n), du = bench::random(rows, width);
  workspace scratch;
  bench::measure(state, [&] {
    hyper_connection_collapse<float>::backward(bench::policy(), scratch, {x, pre}, {du}, {dx, dpre, true});
  });
  bench::report_floats(state, rows * (3 * n + 1) * width);
}

void gates_backward(benchmark::State& state, const model_config& c) {
  const hyper_connection_config& h = c.hyper_connection;
  const std::int64_t rows = state.range(0), n = h.hc_mult, width = c.hidden_size;
  const auto x = bench::random(rows, n, width), dx = bench::zeros(rows, n, width),
             dcomb = bench::random(rows, n, n);
  const auto z = bench::random(rows, h.mixes()), dz = bench::zeros(rows, h.mixes()),
             dpre = bench::random(rows, n), dpost = bench::random(rows, n);
  const auto base = bench::random(h.mixes()), scale = bench::random(3), dbase = bench::zeros(h.mixes()),
             dscale = bench::zeros(3);
  workspace scratch;
  bench::measure(state, [&] {
    hyper_connection_gates<float>::backward(
        bench::policy(), scratch, {x, z, base, scale, c.rms_norm_eps, h.hc_eps, h.hc_sinkhorn_iters},
        {dpre, dpost, dcomb}, {dx, dz, dbase, dscale, true});
  });
  bench::report_floats(state, rows * (3 * n * width + 3 * h.mixes()));
}

void expand_backward(benchmark::State& state, const model_config& c) {
  const std::int64_t rows = state.range(0), n = c.hyper_connection.hc_mult, width = c.hidden_size;
  const auto x = bench::random(rows, n, width), comb = bench::random(rows, n, n),
             dx = bench::random(rows, n, width), dcomb = bench::zeros(rows, n, n);
  const auto v = bench::random(rows, width), dv = bench::zeros(rows, width), post = bench::random(rows, n),
             dpost = bench::zeros(rows, n);
  const auto out = bench::zeros(rows, n, width);
  workspace scratch;
  bench::measure(state, [&] {
    hyper_connection_expand<float>::backward(bench::policy(), scratch, {x, v, post, comb}, {dx},
                                             {out, dv, dpost, dcomb});
  });
  bench::report_floats(state, rows * (3 * n + 2) * width);
}

const bool added[] = {
    bench::at_every_size("hyper_connection_collapse/backward", {bench::decode_rows, bench::prefill_rows},
                         collapse_backward),
    bench::at_every_size("hyper_connection_gates/backward", {bench::decode_rows, bench::prefill_rows},
                         gates_backward),
    bench::at_every_size("hyper_connection_expand/backward", {bench::decode_rows, bench::prefill_rows},
                         expand_backward),
    bench::at_every_size("hyper_connection_gates/forward", {bench::decode_rows, bench::prefill_rows}, gates),
    bench::at_every_size("hyper_connection_collapse/forward", {bench::decode_rows, bench::prefill_rows},
                         collapse),
    bench::at_every_size("hyper_connection_expand/forward", {bench::decode_rows, bench::prefill_rows},
                         expand)};
}  // namespace
