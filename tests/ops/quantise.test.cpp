// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/ops/round_trip.hpp>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("round_trip: scales are powers of two, by the ceiling rule") {
  CHECK(round_trip<double>::scale(1) == 1);
  CHECK(round_trip<double>::scale(1.0000001) == 2);
  CHECK(round_trip<double>::scale(0.25) == 0.25);
  CHECK(round_trip<double>::scale(0.26) == 0.5);
}

TEST_CASE(
    "quantised with one scale, stored with another: the error is at most half a step of the stored scale") {
  // MXFP4: amax 6 has scale 1; 5 lies between 4 and 6, and goes to the even code.
  float x[] = {6, 5, -2.5f, 0.25f, 0.75f, -0.2f, 1.25f, 0};
  round_trip<float>::forward(exec::reference{}, {block_format::mxfp4}, {{x, 1, 8}});
  const float want[] = {6, 4, -2, 0, 1, 0, 1, 0};
  for (int i = 0; i < 8; ++i) CHECK(x[i] == want[i]);
  auto y = random<float>(64 * 64, 1, 300);
  const auto before = copy(y);
  round_trip<float>::forward(exec::cpu(2), {block_format::fp8_kv}, {y.as(64, 64)});
  for (std::int64_t t = 0; t < 64; ++t) {
    double amax = 0;
    for (int i = 0; i < 64; ++i) amax = std::max(amax, std::abs(double(before[t * 64 + i])));
    const double s = round_trip<float>::scale(amax / 448);
    for (int i = 0; i < 64; ++i) {
      const double v = std::abs(double(before[t * 64 + i])) / s;
      const double step = v < 0x1p-6 ? 0x1p-9 : std::ldexp(1.0, std::ilogb(v) - 3);
      CHECK(std::abs(double(y[t * 64 + i]) - double(before[t * 64 + i])) <= s * step / 2);
    }
  }
}

TEST_CASE("round_trip: twice is once; zeros and tiny rows stay finite") {
  for (const block_format format : {block_format::mxfp4, block_format::fp8_kv})
    for (const double size : {0.0, 1e-30, 1.0, 1e30}) {
      auto x = random<float>(3 * 70, 5, size);
      round_trip<float>::forward(exec::cpu(1), {format}, {x.as(3, 70)});
      const auto once = copy(x);
      round_trip<float>::forward(exec::cpu(1), {format}, {x.as(3, 70)});
      CHECK(same(x, once));
      for (float v : x) CHECK(std::isfinite(v));
    }
}
