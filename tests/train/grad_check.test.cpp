// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/train/grad_check.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace dsv4;

namespace {
/// sum_i sin(x_i) y_i^2 at a point, and its gradients.
struct example {
  std::vector<double> x{0.3, -2, 10}, y{0.7, 1e-3, -2}, dx, dy;
  example() {
    for (std::size_t i = 0; i < 3; ++i) {
      dx.push_back(std::cos(x[i]) * y[i] * y[i]);
      dy.push_back(2 * std::sin(x[i]) * y[i]);
    }
  }
  double loss() const {
    double sum = 0;
    for (std::size_t i = 0; i < 3; ++i) sum += std::sin(x[i]) * y[i] * y[i];
    return sum;
  }
};
}  // namespace

TEST_CASE("grad_check: right gradients pass, and the values are as before") {
  example e;
  const auto x = e.x, y = e.y;
  const auto worst = grad_check([&] { return e.loss(); }, {{"x", e.x, e.dx}, {"y", e.y, e.dy}});
  INFO(worst.text());
  CHECK(worst.error < 1e-9);
  CHECK(worst.checked == 6);
  CHECK(e.x == x);
  CHECK(e.y == y);
}

TEST_CASE("grad_check: a wrong element is found and named") {
  example e;
  e.dy[2] *= 1 + 1e-6;
  const auto worst = grad_check([&] { return e.loss(); }, {{"x", e.x, e.dx}, {"y", e.y, e.dy}});
  CHECK(worst.name == "y");
  CHECK(worst.index == 2);
  CHECK(worst.error == Catch::Approx(1e-6).epsilon(1e-2));
  CHECK(worst.analytic == e.dy[2]);
  CHECK(worst.text().find("y[2]: analytic") == 0);
  e.dx[0] = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isinf(grad_check([&] { return e.loss(); }, {{"x", e.x, e.dx}}).error));
}

TEST_CASE("grad_check: next to a kink a smaller step counts") {
  // |x| at 5e-4: the two largest steps reach across.
  std::vector<double> x{5e-4}, dx{1};
  CHECK(grad_check([&] { return std::abs(x[0]); }, {{"x", x, dx}}).error < 1e-10);
}

TEST_CASE("grad_check: rounding of a large loss is no error, a real one is") {
  std::vector<double> x{0.5}, dx{std::cos(0.5)};
  const auto loss = [&] { return 1e6 + std::sin(x[0]); };
  CHECK(grad_check(loss, {{"x", x, dx}}).error < 1e-9);
  dx[0] += 1e-4;
  CHECK(grad_check(loss, {{"x", x, dx}}).error > 1e-5);
}

TEST_CASE("grad_check: some elements of many") {
  std::vector<double> x(1000, 0.1), dx(1000, 1);
  int calls = 0;
  const auto worst = grad_check(
      [&] {
        ++calls;
        double sum = 0;
        for (double v : x) sum += v;
        return sum;
      },
      {{"x", x, dx}}, {.steps = 1, .most = 7});
  CHECK(worst.checked == 7);
  CHECK(calls == 28);
  dx.resize(999);
  CHECK_THROWS_WITH(grad_check([] { return 0.0; }, {{"x", x, dx}}),
                    testing::contains("grad_check: x gradient: expected 1000, found 999"));
}
