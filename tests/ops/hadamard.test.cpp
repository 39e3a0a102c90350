// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("hadamard: by hand, natural order") {
  double x[] = {1, 2, 3, 4};
  hadamard<double>::forward(exec::reference{}, {}, {{x, 1, 4}});
  const double want[] = {5, -1, -2, 0};
  for (int i = 0; i < 4; ++i) CHECK(x[i] == Catch::Approx(want[i]));
}

TEMPLATE_TEST_CASE("Hadamard on one side only: it cancels in a dot product only when both sides have it", "",
                   float, double) {
  auto q = random<TestType>(128, 1), k = random<TestType>(128, 2);
  const auto dot = [&] {
    double sum = 0;
    for (int i = 0; i < 128; ++i) sum += double(q[i]) * double(k[i]);
    return sum;
  };
  const double before = dot();
  hadamard<TestType>::forward(exec::cpu(1), {}, {q.as(1, 128)});
  CHECK(std::abs(dot() - before) > 0.1);
  hadamard<TestType>::forward(exec::cpu(1), {}, {k.as(1, 128)});
  CHECK(std::abs(dot() - before) < 1e-5);
}

TEMPLATE_TEST_CASE("hadamard: its own inverse; cpu equals reference", "", float, double) {
  for (std::int64_t width : {1, 2, 8, 128}) {
    const auto x = random<TestType>(7 * width);
    auto a = copy(x), b = copy(x);
    hadamard<TestType>::forward(exec::reference{}, {}, {a.as(7, width)});
    hadamard<TestType>::forward(exec::cpu(2), {}, {b.as(7, width)});
    CHECK(relative_error(b, a) <= rounding<TestType>(8));  // log2(128) additions and a product
    hadamard<TestType>::forward(exec::cpu(2), {}, {b.as(7, width)});
    CHECK(relative_error(b, x) <= rounding<TestType>(16));
  }
  TestType three[3] = {};
  CHECK_THROWS_AS(hadamard<TestType>::forward(exec::cpu(1), {}, {{three, 1, 3}}), contract_error);
}
