// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/train/cpu/adamw.hpp>

#include <cmath>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("adamw: two steps by hand") {
  double w[] = {1, 1, 1}, m[3] = {}, v[3] = {};
  const double g1[] = {2, -3, 0}, g2[] = {1, 1, 0};
  const adamw_options o{.beta1 = 0.5, .beta2 = 0.75, .epsilon = 0.25, .weight_decay = 0.1};
  adamw<double>::forward(exec::reference{}, {{g1, 3}, 0.01, 1, 1, o}, {{w, 3}, {m, 3}, {v, 3}});
  // m = g / 2 and v = g^2 / 4, so that after correction the direction is g / (|g| + 1/4).
  CHECK(w[0] == Catch::Approx(0.999 - 0.01 * 2 / 2.25).epsilon(1e-15));
  CHECK(w[1] == Catch::Approx(0.999 + 0.01 * 3 / 3.25).epsilon(1e-15));
  CHECK(w[2] == 0.999);  // decay alone
  const double before = w[0];
  adamw<double>::forward(exec::reference{}, {{g2, 3}, 0.02, 2, 1, o}, {{w, 3}, {m, 3}, {v, 3}});
  // m = (1 + 1) / 2 = 1 over 1 - 1/4; v = 3/4 + 1/4 = 1 over 1 - 9/16.
  CHECK(m[0] == 1);
  CHECK(v[0] == 1);
  CHECK(w[0] ==
        Catch::Approx(before * 0.998 - 0.02 * (1 / 0.75) / (std::sqrt(1 / 0.4375) + 0.25)).epsilon(1e-15));
}

TEST_CASE("adamw: the sign-like step, down to what float can square") {
  for (float g : {1e-18f, -1e-10f, 1.0f, -1e15f, 0.0f, 1e-25f}) {
    INFO("gradient " << g);
    float w = 0, m = 0, v = 0;
    adamw<float>::forward(exec::cpu(1), {{&g, 1}, 0.5, 1}, {{&w, 1}, {&m, 1}, {&v, 1}});
    if (g == 0)
      CHECK(w == 0);
    else if (g == 1e-25f)
      CHECK(std::abs(w) <= 0.5 * 1e-25 / 1e-20 * 1.0001);  // its square is 0: epsilon divides
    else if (std::abs(g) > 1e-17f)
      CHECK(w == Catch::Approx(g > 0 ? -0.5 : 0.5).epsilon(1e-5));
    else
      CHECK(w == Catch::Approx(-0.5 / 1.01).epsilon(1e-3));  // epsilon is a hundredth of |g|
  }
}

TEMPLATE_TEST_CASE("adamw: cpu equals reference, for any number of threads", "", float, double) {
  using T = TestType;
  for (std::int64_t n : {0, 1, 7, 70000}) {
    const auto start = random<T>(n, 1);
    auto w = copy(start), m = buffer<T>(n), v = buffer<T>(n);
    auto rw = copy(start), rm = buffer<T>(n), rv = buffer<T>(n);
    auto tw = copy(start), tm = buffer<T>(n), tv = buffer<T>(n);
    for (std::int64_t step = 1; step <= 5; ++step) {
      const auto g = random<T>(n, 10 + static_cast<std::uint64_t>(step));
      const typename adamw<T>::inputs in{g.as(n), 1e-2, step, 0.5};
      adamw<T>::forward(exec::reference{}, in, {rw.as(n), rm.as(n), rv.as(n)});
      adamw<T>::forward(exec::cpu(1), in, {w.as(n), m.as(n), v.as(n)});
      adamw<T>::forward(exec::cpu(3), in, {tw.as(n), tm.as(n), tv.as(n)});
    }
    CHECK(same(w, tw));
    CHECK(same(m, tm));
    CHECK(same(v, tv));
    // Moments: one cancelling sum a step. Weights: a step of 0.01 whose quotient cancels as much.
    CHECK(relative_error(m, rm) <= rounding<T>(5 * 3));
    CHECK(relative_error(v, rv) <= rounding<T>(5 * 4));
    CHECK(relative_error(w, rw) <= rounding<T>(5 * 4));
  }
}

TEST_CASE("adamw: what it refuses") {
  float x[4] = {};
  CHECK_THROWS_WITH(adamw<float>::forward(exec::cpu(1), {{x, 2}, 1, 0}, {{x, 2}, {x, 2}, {x, 2}}),
                    contains("adamw: step: expected 1 or more, found 0"));
  CHECK_THROWS_WITH(adamw<float>::forward(exec::cpu(1), {{x, 2}, 1, 1}, {{x, 2}, {x, 3}, {x, 2}}),
                    contains("adamw: first: expected 2, found 3"));
}
