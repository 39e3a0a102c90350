// SPDX-License-Identifier: Apache-2.0
// One side of a residual site at once: z, gates, collapse and norm; opening it again for backward; backward.
#include <dsv4/ops/cuda/hyper_connection_fold.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;
using fold = hyper_connection_fold<bf16, D>;

struct operands {
  operands(const model_config& config, std::int64_t n)
      : c(config),
        rows(n),
        streams(h.hc_mult),
        width(c.hidden_size),
        x(bench::random(rows, streams, width)),
        dnext(bench::random(rows, streams, width)),
        dx(bench::zeros(rows, streams, width)),
        comb(bench::zeros(rows, streams, streams)),
        z(bench::zeros(rows, h.mixes())),
        post(bench::zeros(rows, streams)),
        u(bench::zeros(rows, width)),
        v(bench::random(rows, width)),
        dv(bench::zeros(rows, width)),
        fn(bench::random_weight(h.mixes(), streams * width)),
        dfn(bench::zeros(h.mixes(), streams * width)),
        base(bench::random(h.mixes())),
        scale(bench::random(3)),
        norm(bench::random(width)),
        dbase(bench::zeros(h.mixes())),
        dscale(bench::zeros(3)),
        dnorm(bench::zeros(width)),
        scratch(std::size_t{256} << 20) {
    forward();
  }
  fold::inputs in() const {
    return {x, fn, base, scale, norm, c.rms_norm_eps, h.hc_eps, h.hc_sinkhorn_iters};
  }
  /// Each returns how many elements it moves per token.
  std::int64_t forward() {
    fold::forward(bench::policy(), scratch, in(), {u, post, comb}, {z, {}, {}});
    return (2 * streams + 1) * width;
  }
  std::int64_t reopen() {
    hyper_connection_reopen<bf16, D>::forward(bench::policy(), scratch, {in(), z, v, dnext},
                                              {u, dv, post, comb, {}, {}, {}});
    return (2 * streams + 3) * width;
  }
  std::int64_t backward() {
    fold::backward(bench::policy(), scratch, in(), {z, {}, {}}, {u, post, comb, dnext},
                   {dx, dfn, dbase, dscale, dnorm});
    return (4 * streams + 2) * width;
  }

  const model_config& c;
  const hyper_connection_config& h = c.hyper_connection;
  std::int64_t rows, streams, width;
  bench::array<bf16, 3> x, dnext, dx, comb;
  bench::array<bf16, 2> z, post, u, v, dv, fn, dfn;
  bench::array<bf16, 1> base, scale, norm, dbase, dscale, dnorm;
  device_workspace scratch;
};

const bool added[] = {
    bench::at_every_size("hyper_connection_fold/forward", {bench::decode_rows, bench::prompt_rows},
                         bench::moving(&operands::forward)),
    bench::at_every_size("hyper_connection_reopen/backward", {bench::prompt_rows},
                         bench::moving(&operands::reopen)),
    bench::at_every_size("hyper_connection_fold/backward", {bench::prompt_rows},
                         bench::moving(&operands::backward))};
}  // namespace
