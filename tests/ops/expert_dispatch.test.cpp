// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

TEMPLATE_TEST_CASE("experts: pairs are sorted stably, experts without rows are empty, results come back", "",
                   float, double) {
  using T = TestType;
  const std::int64_t n = 37, k = 3, width = 5, experts = 6, pairs = n * k;
  const auto x = random<T>(n * width, 1), weights = random<T>(pairs, 2), shared = random<T>(n * width, 3);
  buffer<std::int32_t> chosen(pairs);
  for (std::int64_t i = 0; i < pairs; ++i)
    chosen[i] = static_cast<std::int32_t>((i * 7 + i / 4) % 5);  // 5 is never chosen
  const auto run = [&](const auto& p, buffer<T>& out) {
    buffer<std::int64_t> offsets(experts + 1), order(pairs), inverse(pairs);
    auto sorted = poison<T>(pairs * width), weight_sorted = poison<T>(pairs);
    expert_dispatch<T>::forward(
        p, {x.as(n, width), chosen.as(n, k), weights.as(n, k)},
        {offsets.as(experts + 1), order.as(pairs), sorted.as(pairs, width), weight_sorted.as(pairs)});
    CHECK(offsets[0] == 0);
    CHECK(offsets[5] == pairs);
    CHECK(offsets[6] == pairs);
    for (std::int64_t e = 0; e < experts; ++e)
      for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
        CHECK(chosen[order[r]] == e);
        CHECK((r == offsets[e] || order[r] > order[r - 1]));
        CHECK(sorted[r * width + 2] == x[order[r] / k * width + 2]);
        CHECK(weight_sorted[r] == weights[order[r]]);
      }
    expert_combine<T>::forward(p, {sorted.as(pairs, width), order.as(pairs), shared.as(n, width)},
                               {out.as(n, width), inverse.as(pairs)});
  };
  auto a = poison<T>(n * width), b = poison<T>(n * width);
  run(exec::reference{}, a);
  run(exec::cpu(2), b);
  CHECK(relative_error(b, a) <= rounding<T>(double(k) * 3));
  for (std::int64_t i = 0; i < n * width; ++i)  // every pair brought its own token back
    CHECK(double(a[i]) == Catch::Approx(double(shared[i]) + 3 * double(x[i])).margin(1e-5));
}
