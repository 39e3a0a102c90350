// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/train/cuda/adamw.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Roundings: each moment two products, a square and a sum; the direction those of both, a root and a
// quotient, at most 1 / sqrt(1 - beta2) = 4.5 times the learning rate; the weight two products and a
// difference. All elements are of the order of 1.
TEMPLATE_TEST_CASE("adamw: cuda equals reference", "", float, double) {
  using T = TestType;
  for (const std::int64_t n : {0, 1, 31, 4097, 300000})
    for (const std::int64_t step : {1, 2, 1000}) {
      INFO(n << " elements, step " << step);
      auto gradient = random<T>(n, 1, 3), weight = random<T>(n, 2), first = random<T>(n, 3),
           second = random<T>(n, 4);
      for (std::int64_t i = 0; i < n; ++i) second.host[i] = std::abs(second.host[i]) + T(0.1);
      if (n > 5) gradient.host[5] = 0, first.host[5] = 0, second.host[5] = 0;  // no step, and no NaN
      twin<T> g(std::move(gradient.host)), v(std::move(second.host));
      twin<T> m(std::move(first.host));
      const double rate = 0.01, scale = 0.5;
      adamw<T>::forward(exec::reference{}, {g.h(n), rate, step, scale}, {weight.h(n), m.h(n), v.h(n)});
      const auto run = [&] {
        weight.reset(), m.reset(), v.reset();
        adamw<T, D>::forward(gpu(), {g.d(n), rate, step, scale}, {weight.d(n), m.d(n), v.d(n)});
      };
      check_close(weight, tolerance<T>(8), run);
      check_close(m, tolerance<T>(4), run);
      check_close(v, tolerance<T>(4), run);
      if (n > 5) CHECK(std::isfinite(double(weight.fetch()[5])));
    }
}
