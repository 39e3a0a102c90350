// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

namespace {
template <policy P>
double one(const P& p, double gate, double up, double limit, double weight = 1) {
  double h;
  swiglu<double>::forward(p, {{&gate, 1, 1}, {&up, 1, 1}, {&weight, 1}, limit}, {{&h, 1, 1}});
  return h;
}
}  // namespace

TEST_CASE("clamp before the product, the gate one-sided, the up-projection two-sided") {
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  const auto check = [&](const auto& p) {
    CHECK(one(p, 20, 20, 10) == Catch::Approx(silu(10) * 10));
    CHECK(one(p, 20, -20, 10) == Catch::Approx(silu(10) * -10));
    CHECK(one(p, -20, 1, 10) == Catch::Approx(silu(-20)));  // no lower clamp
    CHECK(one(p, 2, 3, 10, 0.25) == Catch::Approx(silu(2) * 3 * 0.25));
    CHECK(one(p, 10, 10, 10) == Catch::Approx(silu(10) * 10));
    CHECK(one(p, -800, 10, 10) == Catch::Approx(0).margin(1e-300));
  };
  check(exec::reference{});
  check(exec::cpu(1));
}

TEMPLATE_TEST_CASE("swiglu: cpu equals reference, in place too", "", float, double) {
  for (std::int64_t rows : {0, 1, 41})
    for (std::int64_t width : {1, 9, 64}) {
      const auto gate = random<TestType>(rows * width, 1, 15), up = random<TestType>(rows * width, 2, 15);
      const auto weight = random<TestType>(rows, 3);
      auto a = poison<TestType>(rows * width), b = copy(gate);
      swiglu<TestType>::forward(exec::reference{},
                                {gate.as(rows, width), up.as(rows, width), weight.as(rows), 10},
                                {a.as(rows, width)});
      swiglu<TestType>::forward(exec::cpu(2), {b.as(rows, width), up.as(rows, width), weight.as(rows), 10},
                                {b.as(rows, width)});
      CHECK(relative_error(b, a) <= rounding<TestType>(8));
    }
}
