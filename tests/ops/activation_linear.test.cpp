// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/ops/activation_linear.hpp>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// A gate of one weight and one input: swiglu(2 x, 3 x).
double gated(double x, double limit) {
  const double gate = 2, up = 3;
  double h;
  workspace w;
  gated_linear<double>::forward(exec::reference{}, w, {{&x, 1, 1}, {&gate, 1, 1}, {&up, 1, 1}, limit},
                                {{&h, 1, 1}});
  return h;
}
}  // namespace

TEST_CASE("activation_linear and its gate, by hand") {
  CHECK(gated(1, 10) == Catch::Approx(2 / (1 + std::exp(-2.0)) * 3));
  CHECK(gated(4, 10) == Catch::Approx(8 / (1 + std::exp(-8.0)) * 10));

  // 1 / 240 of the block's largest is rounded: 448 / 240 = 1.8667 lies between 1.75 and 1.875.
  buffer<float> x(128), weight(128);
  x[0] = 448, x[5] = 448.0f / 240, weight[5] = 1;
  float y;
  workspace w;
  activation_linear<float, space::host, float, fp8_activation>::forward(
      exec::reference{}, w, {x.as(1, 128), weight.as(1, 128)}, {{&y, 1, 1}});
  CHECK(y == 1.875f);
  activation_linear<float>::forward(exec::reference{}, w, {x.as(1, 128), weight.as(1, 128)}, {{&y, 1, 1}});
  CHECK(y == x[5]);
}

TEST_CASE("activation_linear: experts, and two products at once, are the ops they are rows of") {
  const std::int64_t rows = 5, inner = 9, columns = 4, experts = 3;
  const auto x = random<double>(rows * inner, 1), gate = random<double>(experts * columns * inner, 2),
             up = random<double>(experts * columns * inner, 3), weight = random<double>(rows, 4);
  buffer<std::int64_t> offsets(experts + 1);
  offsets[1] = 2, offsets[2] = 2, offsets[3] = rows;
  auto h = poison<double>(rows * columns), y = poison<double>(rows * columns),
       first = poison<double>(rows * columns), second = poison<double>(rows * columns);
  workspace w;
  const exec::cpu p(2);
  grouped_gated_linear<double>::forward(
      p, w,
      {x.as(rows, inner), offsets.as(experts + 1), gate.as(experts, columns, inner),
       up.as(experts, columns, inner), weight.as(rows), 0.5},
      {h.as(rows, columns)});
  for (const std::int64_t e : {0, 2}) {
    const std::int64_t begin = offsets[e], n = offsets[e + 1] - begin;
    const auto part = x.as(rows, inner).rows(begin, n);
    const auto own_gate = gate.as(experts, columns, inner)[e], own_up = up.as(experts, columns, inner)[e];
    activation_linear_pair<double>::forward(
        p, w, {part, own_gate, own_up},
        {first.as(rows, columns).rows(begin, n), second.as(rows, columns).rows(begin, n)});
  }
  swiglu<double>::forward(exec::reference{},
                          {first.as(rows, columns), second.as(rows, columns), weight.as(rows), 0.5},
                          {second.as(rows, columns)});
  CHECK(relative_error(h, second) <= rounding<double>(2 * inner));
  grouped_activation_linear<double>::forward(
      p, w, {x.as(rows, inner), offsets.as(experts + 1), gate.as(experts, columns, inner)},
      {y.as(rows, columns)});
  CHECK(relative_error(y, first) <= rounding<double>(inner));
}

TEST_CASE("activation_linear: extents that do not fit are refused") {
  buffer<float> x(2 * 8), weight(4 * 8);
  buffer<float> y(2 * 4);
  workspace w;
  const exec::reference p;
  CHECK_THROWS_AS((activation_linear<float>::forward(p, w, {x.as(2, 8), weight.as(8, 4)}, {y.as(2, 4)})),
                  contract_error);
  CHECK_THROWS_AS((activation_linear_pair<float>::forward(
                      p, w, {x.as(2, 8), weight.as(4, 8), weight.as(2, 8)}, {y.as(2, 4), y.as(2, 4)})),
                  contract_error);
  CHECK_THROWS_AS(
      (gated_linear<float>::forward(p, w, {x.as(2, 8), weight.as(4, 8), weight.as(2, 8), 1}, {y.as(2, 4)})),
      contract_error);
}
