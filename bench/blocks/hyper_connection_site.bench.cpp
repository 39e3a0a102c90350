// SPDX-License-Identifier: Apache-2.0
// What the residual streams cost around a sublayer, forward alone and in training; the sublayer itself only
// copies.
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/ops/copy_rows.hpp>

#include <algorithm>
#include <support/weights.hpp>

namespace {
using namespace dsv4;

const bool trained = bench::at_float_sizes(
    "hyper_connection_site/training", {bench::prefill_rows}, []<model_config C>(benchmark::State& state) {
      constexpr hyper_connection_config h = C.hyper_connection;
      const std::int64_t rows = state.range(0), n = h.hc_mult, width = C.hidden_size;
      const auto fn = bench::random(h.mixes(), n * width), dfn = bench::zeros(h.mixes(), n * width);
      const auto base = bench::random(h.mixes()), scale = bench::random(3), norm = bench::random(width);
      const auto dbase = bench::zeros(h.mixes()), dscale = bench::zeros(3), dnorm = bench::zeros(width);
      const auto x = bench::random(rows, n, width), next = bench::zeros(rows, n, width);
      const auto dnext = bench::random(rows, n, width), dx = bench::zeros(rows, n, width);
      const hyper_connection_parameters<float> parameters{fn, base, scale}, gradients{dfn, dbase, dscale};
      workspace scratch;
      const auto copy = [&](auto from, auto to) {
        copy_rows<float>::forward(bench::policy(), {from, 0, 0, rows}, {to});
      };
      bench::measure(state, [&] {
        const workspace_scope scope(scratch);
        const auto kept = hyper_connection_context<float>::take(scratch, h, rows, width);
        hyper_connection_site<h, float, space::host>(bench::policy(), scratch, parameters, norm,
                                                     C.rms_norm_eps, x, next.v, kept, copy);
        std::copy_n(dnext.v.data, dnext.v.size(), dx.v.data);  // what comes in leaves as another gradient
        hyper_connection_site_backward<h, float, space::host>(
            bench::policy(), scratch, parameters, norm, C.rms_norm_eps, x, kept, dx.v, gradients, dnorm.v,
            [&](auto, auto dv, auto du) { copy(dv, du); });
      });
      bench::report_rows(state, rows);
    });

const bool added = bench::at_every_compiled_size(
    "hyper_connection_site/forward", {bench::decode_rows, bench::prefill_rows},
    []<model_config C>(benchmark::State& state) {
      constexpr hyper_connection_config h = C.hyper_connection;
      const std::int64_t rows = state.range(0), n = h.hc_mult, width = C.hidden_size;
      const auto fn = bench::random(h.mixes(), n * width);
      const auto base = bench::random(h.mixes()), scale = bench::random(3), norm = bench::random(width);
      const auto x = bench::random(rows, n, width);
      const hyper_connection_parameters<float> parameters{fn, base, scale};
      workspace scratch;
      bench::measure(state, [&] {
        hyper_connection_site<h, float, space::host>(
            bench::policy(), scratch, parameters, norm, C.rms_norm_eps, x, [&](auto u, auto v) {
              copy_rows<float>::forward(bench::policy(), {u, 0, 0, rows}, {v});
            });
      });
      bench::report_flops(state, 2.0 * double(rows * h.mixes() * n * width));
      // The streams twice in and once out, the fold out and in, and the mixer's weights.
      bench::report_floats(state, rows * (3 * n + 4) * width + h.mixes() * n * width);
      bench::report_rows(state, rows);
    });
}  // namespace
