// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/numeric/minifloat.hpp>

#include <cmath>
#include <limits>
#include <random>

using namespace dsv4;

namespace {
/// The nearest of all encodings, ties to the even code: slow and without bit tricks.
template <class F>
float nearest(float x) {
  if (std::abs(x) >= F::max()) return std::signbit(x) ? -F::max() : F::max();
  int best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (int code = 0; code <= F::max_bits; ++code) {
    const double d =
        std::abs(std::abs(double(x)) - double(float(F::from_bits(static_cast<std::uint8_t>(code)))));
    if (d < distance || (d == distance && code % 2 == 0)) best = code, distance = d;
  }
  const float magnitude = float(F::from_bits(static_cast<std::uint8_t>(best)));
  return std::signbit(x) ? -magnitude : magnitude;
}
}  // namespace

TEMPLATE_TEST_CASE("small floats: every encoding survives, every rounding is to the nearest even", "", e4m3,
                   e5m2, e2m1) {
  using F = TestType;
  for (int code = 0; code <= F::magnitude_mask; ++code)
    for (int sign : {0, int{F::sign_mask}}) {
      const F f = F::from_bits(static_cast<std::uint8_t>(code | sign));
      if (f.is_nan()) {
        CHECK(std::isnan(float(f)));
      } else if (std::isfinite(float(f))) {
        CHECK(F(float(f)).bits == f.bits);  // -0 too
      }
    }
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isnan(x)) continue;
    const float y =
        std::ldexp(x, -std::ilogb(x) + static_cast<int>(random() % 40) - 20);  // where the formats are
    for (float v : {x, y}) {
      if (!std::isfinite(v)) continue;
      CHECK(float(F(v)) == nearest<F>(v));
      CHECK(std::signbit(float(F(v))) == std::signbit(v));
    }
  }
  CHECK(float(F(std::numeric_limits<float>::infinity())) == F::max());
  CHECK(float(F(-1e30f)) == -F::max());
}

TEST_CASE("the values of e2m1") {
  const float table[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int i = 0; i < 8; ++i) CHECK(float(e2m1::from_bits(static_cast<std::uint8_t>(i))) == table[i]);
  CHECK(e4m3(std::numeric_limits<float>::quiet_NaN()).is_nan());
  CHECK(e2m1(std::numeric_limits<float>::quiet_NaN()).bits == 0);
}
