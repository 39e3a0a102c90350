// SPDX-License-Identifier: Apache-2.0
// What a residual site is made of, beside its product: gates with Sinkhorn, collapse, expand.
#include <dsv4/ops/cuda/hyper_connection.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

struct operands {
  operands(const model_config& config, std::int64_t n)
      : c(config),
        rows(n),
        streams(h.hc_mult),
        width(c.hidden_size),
        x(bench::random(rows, streams, width)),
        y(bench::random(rows, streams, width)),
        dnext(bench::random(rows, streams, width)),
        comb(bench::random(rows, streams, streams)),
        dcomb(bench::random(rows, streams, streams)),
        z(bench::random(rows, h.mixes())),
        dz(bench::zeros(rows, h.mixes())),
        pre(bench::random(rows, streams)),
        post(bench::random(rows, streams)),
        dpre(bench::random(rows, streams)),
        dpost(bench::random(rows, streams)),
        u(bench::random(rows, width)),
        v(bench::random(rows, width)),
        base(bench::random(h.mixes())),
        scale(bench::random(3)),
        dbase(bench::zeros(h.mixes())),
        dscale(bench::zeros(3)) {}

  hyper_connection_gates<bf16, D>::inputs of_gates() const {
    return {x, z, base, scale, c.rms_norm_eps, h.hc_eps, h.hc_sinkhorn_iters};
  }
  std::int64_t gates() {
    hyper_connection_gates<bf16, D>::forward(bench::policy(), of_gates(), {pre, post, comb});
    return streams * width + 2 * h.mixes();
  }
  std::int64_t gates_backward() {
    hyper_connection_gates<bf16, D>::backward(bench::policy(), scratch, of_gates(), {dpre, dpost, dcomb},
                                              {y, dz, dbase, dscale, true});
    return 3 * streams * width + 3 * h.mixes();
  }
  std::int64_t collapse() {
    hyper_connection_collapse<bf16, D>::forward(bench::policy(), {x, pre}, {u});
    return (streams + 1) * width;
  }
  std::int64_t collapse_backward() {
    hyper_connection_collapse<bf16, D>::backward(bench::policy(), scratch, {x, pre}, {u}, {y, dpre});
    return (2 * streams + 1) * width;
  }
  std::int64_t expand() {
    hyper_connection_expand<bf16, D>::forward(bench::policy(), {x, v, post, comb}, {y});
    return (2 * streams + 1) * width;
  }
  std::int64_t expand_backward() {
    hyper_connection_expand<bf16, D>::backward(bench::policy(), scratch, {x, v, post, comb}, {dnext},
                                               {y, u, dpost, dcomb});
    return (3 * streams + 2) * width;
  }

  const model_config& c;
  const hyper_connection_config& h = c.hyper_connection;
  std::int64_t rows, streams, width;
  bench::array<bf16, 3> x, y, dnext, comb, dcomb;
  bench::array<bf16, 2> z, dz, pre, post, dpre, dpost, u, v;
  bench::array<bf16, 1> base, scale, dbase, dscale;
  device_workspace scratch;
};

constexpr auto rows = {bench::decode_rows, bench::prompt_rows};
const bool added[] = {
    bench::at_every_size("hyper_connection_gates/forward", rows, bench::moving(&operands::gates)),
    bench::at_every_size("hyper_connection_gates/backward", {bench::prompt_rows},
                         bench::moving(&operands::gates_backward)),
    bench::at_every_size("hyper_connection_collapse/forward", rows, bench::moving(&operands::collapse)),
    bench::at_every_size("hyper_connection_collapse/backward", {bench::prompt_rows},
                         bench::moving(&operands::collapse_backward)),
    bench::at_every_size("hyper_connection_expand/forward", rows, bench::moving(&operands::expand)),
    bench::at_every_size("hyper_connection_expand/backward", {bench::prompt_rows},
                         bench::moving(&operands::expand_backward))};
}  // namespace
