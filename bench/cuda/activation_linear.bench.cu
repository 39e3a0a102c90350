// SPDX-License-Identifier: Apache-2.0
// Rounding inputs to FP8, products with FP8 weights, and the shared expert's gate: of few rows in one launch.
#include <dsv4/ops/cuda/activation_linear.cuh>

#include <support/device_formats.cuh>
#include <support/work.hpp>

namespace {
using namespace dsv4;
using bench::D;
using C = const model_config&;

struct operands {
  operands(C c, std::int64_t n)
      : rows(n),
        in(c.hidden_size),
        out(c.moe.moe_intermediate_size),
        limit(c.moe.swiglu_limit),
        x(bench::random(n, in)),
        first(bench::zeros(n, out)),
        second(bench::zeros(n, out)),
        weight(made.take(out, in)),
        other(made.take(out, in)) {}
  void one() {
    activation_linear<bf16, D, fp8_weight, fp8_activation>::forward(bench::policy(), scratch, {x, weight},
                                                                    {first});
  }
  void two() {
    activation_linear_pair<bf16, D, fp8_weight, fp8_activation>::forward(bench::policy(), scratch,
                                                                         {x, weight, other}, {first, second});
  }
  void gated() {
    gated_linear<bf16, D, fp8_weight, fp8_activation>::forward(bench::policy(), scratch,
                                                               {x, weight, other, limit}, {first});
  }

  std::int64_t rows, in, out;
  double limit;
  bench::array<bf16, 2> x, first, second;
  bench::random_matrices<fp8_weight> made;
  block_scaled_matrix<const fp8_weight, D> weight, other;
  device_workspace scratch;
};

/// `call` multiplies by `matrices` and writes `results`.
auto of(void (operands::*call)(), int matrices, int results) {
  return [=](benchmark::State& state, C c) {
    operands o(c, state.range(0));
    bench::measure(state, [&] { (o.*call)(); });
    bench::report_flops(state, 2.0 * matrices * double(o.rows) * double(o.out) * double(o.in));
    bench::report_bytes(state,
                        2 * o.rows * (o.in + results * o.out) + matrices * fp8_weight::bytes(o.out, o.in));
  };
}

constexpr auto rows = {bench::decode_rows, std::int64_t{8}, bench::prompt_rows};
const bool added[] = {bench::at_every_size("activation_linear/forward", rows, of(&operands::one, 1, 1)),
                      bench::at_every_size("activation_linear_pair/forward", rows, of(&operands::two, 2, 2)),
                      bench::at_every_size("gated_linear/forward", rows, of(&operands::gated, 2, 1))};
}  // namespace
