// SPDX-License-Identifier: Apache-2.0
#include "nearest_even.hpp"
#include "support/catch.hpp"
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
const auto convert = [](auto x) { return unsigned{bf16(x).bits}; };
const auto expected = [](bool negative, int code) {  // the code after the last is infinity's
  return static_cast<unsigned>(code | (negative ? 0x8000 : 0));
};
/// Sign and the payload's upper bits stay, the quiet bit is set.
const auto quieted = [](float x) { return std::bit_cast<std::uint32_t>(x) >> 16 | 0x40; };
}  // namespace

TEST_CASE("bf16: every code is the upper half of a float, and comes back") {
  const value_grid grid(7, 127, 0x7F7F);
  for (unsigned code = 0; code < 0x10000; ++code) {
    const bf16 b = bf16::from_bits(static_cast<std::uint16_t>(code));
    const bool nan = code % 0x8000 > 0x7F80;
    INFO("code " << code);
    REQUIRE(std::bit_cast<std::uint32_t>(float(b)) == code << 16);
    REQUIRE(b.is_nan() == nan);
    if (nan) {
      REQUIRE(bf16(float(b)).bits == (code | 0x40));
      REQUIRE(bf16(double(b)).is_nan());
      REQUIRE(std::isnan(double(b)));
      continue;
    }
    REQUIRE(bf16(float(b)) == b);
    REQUIRE(bf16(double(b)) == b);
    if (code % 0x8000 <= 0x7F7F) REQUIRE(std::abs(double(b)) == grid.values[code % 0x8000]);
  }
  CHECK(bf16::max() == 3.38953139e38f);
  CHECK(float(bf16::from_bits(1)) == 0x1p-133f);
}

TEST_CASE("bf16: float and double round to the nearest, ties to even, on a sample") {
  check_sample(value_grid(7, 127, 0x7F7F), convert, expected, quieted);
}
TEST_CASE("bf16: all 2^32 floats round to the nearest, ties to even", "[.long]") {
  check_all(value_grid(7, 127, 0x7F7F), convert, expected, quieted);
}

TEST_CASE("bf16: ends, NaN and double rounding") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(bf16(infinity).bits == 0x7F80);
  CHECK(bf16(-infinity).bits == 0xFF80);
  CHECK(bf16(std::numeric_limits<float>::max()).bits == 0x7F80);  // as IEEE 754: not saturating
  CHECK(bf16(1e300).bits == 0x7F80);
  CHECK(bf16(-1e-300).bits == 0x8000);
  // Truncated or rounded as a number, this NaN would be infinity, and that one minus zero.
  CHECK(bf16(std::bit_cast<float>(0x7F800001u)).bits == 0x7FC0);
  CHECK(bf16(std::bit_cast<float>(0x7FFFFFFFu)).bits == 0x7FFF);
  CHECK(bf16(std::bit_cast<double>(0xFFF0000000000001u)).bits == 0xFFC0);

  const double x = 1 + 0x1p-8 + 0x1p-40;
  CHECK(float(bf16(x)) == 1 + 0x1p-7f);
  CHECK(float(bf16(static_cast<float>(x))) == 1);  // by way of float it is a tie
  const double subnormal = 0x1p-134 + 0x1p-170;
  CHECK(bf16(subnormal).bits == 1);
  CHECK(bf16(static_cast<float>(subnormal)).bits == 0);
}

TEST_CASE("bf16 does not turn into a number or another format by accident") {
  static_assert(std::is_trivially_copyable_v<bf16> && sizeof(bf16) == 2);
  static_assert(!std::is_convertible_v<float, bf16> && !std::is_convertible_v<bf16, float>);
  static_assert(!std::is_convertible_v<double, bf16> && !std::is_convertible_v<bf16, double>);
  static_assert(!std::is_constructible_v<bf16, int> && !std::is_constructible_v<bf16, std::uint16_t>);
  static_assert(!std::is_constructible_v<bf16, e4m3> && !std::is_constructible_v<e4m3, bf16>);
  static_assert(!std::is_constructible_v<int, bf16>);
  static_assert(bf16(1.0f) == bf16(1.0) && bf16(1.0f).bits == 0x3F80 && !(bf16(0.0f) == bf16(-0.0f)));
  CHECK(bf16() == bf16(0.0f));
}
