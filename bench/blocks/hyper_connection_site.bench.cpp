// SPDX-License-Identifier: Apache-2.0
// What the residual streams cost around a sublayer; the sublayer itself only copies.
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/ops/copy_rows.hpp>

#include <support/weights.hpp>

namespace {
using namespace dsv4;

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
