// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("rms_norm: by hand") {
  double x[] = {3, 4, 0, 0, 1, 1, 1, 1}, w[] = {1, 2, 3, 4}, y[8];
  rms_norm<double>::forward(exec::reference{}, {{x, 2, 4}, {w, 4}, 0}, {{y, 2, 4}});
  const double want[] = {3 / 2.5, 8 / 2.5, 0, 0, 1, 2, 3, 4};
  for (int i = 0; i < 8; ++i) CHECK(y[i] == Catch::Approx(want[i]));
  rms_norm<double>::forward(exec::reference{}, {{x, 2, 4}, {}, 3},
                            {{y, 2, 4}});  // no weight; eps in the root
  CHECK(y[4] == Catch::Approx(0.5));
}

TEMPLATE_TEST_CASE("rms_norm: cpu equals reference, and a row is the same in any batch", "", float, double) {
  for (std::int64_t n : {0, 1, 3, 70})
    for (std::int64_t width : {1, 7, 8, 33, 512}) {
      const auto x = random<TestType>(n * width, 1, 5), weight = random<TestType>(width, 2);
      auto a = poison<TestType>(n * width), b = poison<TestType>(n * width), c = poison<TestType>(n * width);
      rms_norm<TestType>::forward(exec::reference{}, {x.as(n, width), weight.as(width), 1e-6},
                                  {a.as(n, width)});
      rms_norm<TestType>::forward(exec::cpu(2), {x.as(n, width), weight.as(width), 1e-6}, {b.as(n, width)});
      CHECK(relative_error(b, a) <=
            rounding<TestType>(double(width) / 8 + 4));  // an eighth of the row in one accumulator
      for (std::int64_t t = 0; t < n; ++t)
        rms_norm<TestType>::forward(exec::cpu(1), {x.as(n, width).rows(t, 1), weight.as(width), 1e-6},
                                    {c.as(n, width).rows(t, 1)});
      CHECK(same(b, c));
    }
}

TEST_CASE("rms_norm: wrong extents are refused by name") {
  float x[6] = {}, y[6];
  CHECK_THROWS_WITH(rms_norm<float>::forward(exec::reference{}, {{x, 2, 3}, {x, 2}, 0}, {{y, 2, 3}}),
                    contains("rms_norm: weight: expected 3, found 2"));
}
