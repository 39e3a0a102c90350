// SPDX-License-Identifier: Apache-2.0
// What the residual streams cost around a sublayer, forward alone and in training; there is no sublayer.
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/ops/cuda/hyper_connection_fold.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

template <model_config C>
struct site {
  static constexpr hyper_connection_config h = C.hyper_connection;
  static constexpr std::int64_t n = h.hc_mult, width = C.hidden_size;
  explicit site(std::int64_t rows) : x(bench::random(rows, n, width)), next(bench::zeros(rows, n, width)) {}

  bench::array<bf16, 2> fn = bench::random_weight(h.mixes(), n* width);
  bench::array<bf16, 1> base = bench::random(h.mixes()), scale = bench::random(3),
                        norm = bench::random(width);
  hyper_connection_parameters<bf16, D> parameters{fn, base, scale};
  bench::array<bf16, 3> x, next;
  device_workspace scratch;
};

const bool added = bench::at_device_sizes(
    "hyper_connection_site/forward", {bench::decode_rows, bench::prompt_rows},
    [](benchmark::State& state, auto of) {
      constexpr model_config C = of.config;
      const std::int64_t rows = state.range(0);
      site<C> s(rows);
      bench::measure(state, [&] {
        hyper_connection_site<s.h, bf16, D>(bench::policy(), s.scratch, s.parameters, s.norm, C.rms_norm_eps,
                                            s.x.v, [](auto, auto) {});
      });
      bench::report_flops(state, 2.0 * double(rows * s.h.mixes() * s.n * s.width));
      // The streams twice in and once out, the sublayer's input and output, and the mixer's weights.
      bench::report_elements(state, rows * (3 * s.n + 2) * s.width + s.h.mixes() * s.n * s.width);
    });

const bool trained = bench::at_device_sizes(
    "hyper_connection_site/training", {bench::prompt_rows}, [](benchmark::State& state, auto of) {
      constexpr model_config C = of.config;
      const std::int64_t rows = state.range(0);
      site<C> s(rows);
      const auto dx = bench::random(rows, s.n, s.width);
      const auto dfn = bench::zeros(s.h.mixes(), s.n * s.width);
      const auto dbase = bench::zeros(s.h.mixes()), dscale = bench::zeros(3), dnorm = bench::zeros(s.width);
      const hyper_connection_parameters<bf16, D> gradients{dfn, dbase, dscale};
      const auto kept = hyper_connection_context<bf16, D>::take(s.scratch, s.h, rows, s.width);
      bench::measure(state, [&] {
        hyper_connection_site<s.h, bf16, D>(bench::policy(), s.scratch, s.parameters, s.norm, C.rms_norm_eps,
                                            s.x, s.next.v, kept, [](auto, auto) {});
        hyper_connection_site_backward<s.h, bf16, D>(bench::policy(), s.scratch, s.parameters, s.norm,
                                                     C.rms_norm_eps, s.x, kept, dx.v, gradients, dnorm.v,
                                                     [](auto, auto, auto) {});
      });
      bench::report_flops(state, 6.0 * double(rows * s.h.mixes() * s.n * s.width));
    });
}  // namespace
