// SPDX-License-Identifier: Apache-2.0
#include "nearest_even.hpp"
#include "support/catch.hpp"
#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/e8m0.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#if DSV4_X86_KERNELS
#include <xmmintrin.h>
#endif

using namespace dsv4;
using namespace dsv4::testing;

namespace {
e8m0 bits(unsigned code) { return e8m0::from_bits(static_cast<std::uint8_t>(code)); }

/// The rules as a search in the powers of two, for a positive value; starts at `code`, not beyond the result.
unsigned slow_ceil(double value, unsigned code = 0) {
  while (code < 254 && std::ldexp(1.0, static_cast<int>(code) - 127) < value) ++code;
  return code;
}
unsigned slow_floor(double value, unsigned code = 0) {
  while (code < 254 && std::ldexp(1.0, static_cast<int>(code) - 126) <= value) ++code;
  return code;
}

template <class T>
void check_power_neighbours() {
  difference_count count;
  for (int n = -160; n <= 160; ++n) {
    const T power = static_cast<T>(std::ldexp(1.0, n));
    if (power == 0 || !std::isfinite(power)) continue;
    const T above = std::nextafter(power, std::numeric_limits<T>::max());
    for (T x : {std::nextafter(power, T(0)), power, above, power + power / 2}) {
      if (x == 0 || !std::isfinite(x)) continue;
      count(x, e8m0::ceil(x).bits, slow_ceil(x));
      count(x, e8m0::floor(x).bits, slow_floor(x));
      count(-x, e8m0::ceil(-x).bits, 255);
      count(-x, e8m0::floor(-x).bits, 255);
    }
  }
  for (T x :
       {std::numeric_limits<T>::denorm_min(), std::numeric_limits<T>::min(), std::numeric_limits<T>::max()}) {
    count(x, e8m0::ceil(x).bits, slow_ceil(x));
    count(x, e8m0::floor(x).bits, slow_floor(x));
  }
  count.report();
  for (T x : {std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity(),
              std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN(), T(-1)}) {
    CHECK(e8m0::ceil(x).is_nan());
    CHECK(e8m0::floor(x).is_nan());
  }
  for (T x : {T(0), -T(0)}) {
    CHECK(e8m0::ceil(x).bits == 0);
    CHECK(e8m0::floor(x).bits == 0);
  }
}
}  // namespace

TEST_CASE("row 51, E8M0 is an exponent and not a number: every code") {
  for (unsigned code = 0; code < 255; ++code) {
    const e8m0 scale = bits(code);
    const double power = std::ldexp(1.0, static_cast<int>(code) - 127);
    CHECK(double(float(scale)) == power);
    CHECK(double(scale) == power);
    CHECK(scale.exponent() == static_cast<int>(code) - 127);
    CHECK(!scale.is_nan());
    CHECK(e8m0::ceil(float(scale)) == scale);
    CHECK(e8m0::floor(float(scale)) == scale);
    CHECK(e8m0::ceil(power) == scale);
    CHECK(e8m0::floor(power) == scale);
  }
  CHECK((bits(255).is_nan() && std::isnan(float(bits(255))) && std::isnan(double(bits(255)))));
  CHECK(std::bit_cast<std::uint32_t>(float(bits(0))) == 0x00400000u);
  CHECK(float(bits(120)) == 0x1p-7f);
  CHECK(float(bits(127)) == 1);
  CHECK(float(bits(254)) == 0x1p127f);
}

TEST_CASE("row 51: the smallest scale survives flush-to-zero") {
#if DSV4_X86_KERNELS
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);  // flush results, and treat inputs as zero
  volatile unsigned zero = 0;
  volatile float tiny = float(bits(zero));
  const float copy = tiny;
  const auto word = std::bit_cast<std::uint32_t>(copy);
  const auto wide = std::bit_cast<std::uint64_t>(double(bits(zero)));
  const e8m0 up = e8m0::ceil(copy), down = e8m0::floor(copy);
  _mm_setcsr(saved);
  CHECK(word == 0x00400000u);
  CHECK(wide == std::bit_cast<std::uint64_t>(0x1p-127));
  CHECK((up.bits == 0 && down.bits == 0));
#endif
}

TEST_CASE("e8m0: ceil and floor") {
  check_power_neighbours<float>();
  check_power_neighbours<double>();
  difference_count count;
  unsigned up = 0, down = 0;
  for (std::uint32_t word = 1; word < 0x7f800000u; word += 32749) {
    const float x = std::bit_cast<float>(word);
    count(x, e8m0::ceil(x).bits, up = slow_ceil(x, up));
    count(x, e8m0::floor(x).bits, down = slow_floor(x, down));
    count(double(x), e8m0::ceil(double(x)).bits, up);
    count(double(x), e8m0::floor(double(x)).bits, down);
  }
  count.report();
  // Through float it would be the power itself.
  CHECK(float(e8m0::ceil(1 + 0x1p-40)) == 2);
}

TEST_CASE("e8m0: ceil and floor of all 2^32 floats", "[.long]") {
  difference_count count;
  unsigned up = 0, down = 0;
  for (std::uint64_t word = 0; word < std::uint64_t{1} << 32; ++word) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(word));
    if (x == 0) {
      up = down = 0;
    } else if (!(x > 0) || std::isinf(x)) {
      up = down = 255;
    } else {
      up = slow_ceil(x, up);
      down = slow_floor(x, down);
    }
    count(x, e8m0::ceil(x).bits, up);
    count(x, e8m0::floor(x).bits, down);
  }
  CHECK(count.compared == std::uint64_t{1} << 33);
  count.report();
}

TEST_CASE("e8m0: the two rules of block scaling") {
  // amax, then the largest magnitude that the block's scale can hold: the released rule, and OCP's.
  const float examples[][3] = {{6.1f, 12, 6},   {7, 12, 6}, {7.9f, 12, 6},
                               {12.1f, 24, 12}, {5, 6, 6},  {6, 6, 6}};
  for (const auto& e : examples) {
    CHECK(6 * float(e8m0::ceil(e[0] / 6)) == e[1]);
    CHECK(6 * float(e8m0::floor(e[0])) / 4 == e[2]);
  }
}

TEST_CASE("e8m0 is made from codes and by rules only") {
  static_assert(std::is_trivially_copyable_v<e8m0> && sizeof(e8m0) == 1);
  static_assert(!std::is_constructible_v<e8m0, float> && !std::is_constructible_v<e8m0, int>);
  static_assert(!std::is_constructible_v<e8m0, std::uint8_t> && !std::is_constructible_v<e8m0, bf16>);
  static_assert(!std::is_convertible_v<e8m0, float> && !std::is_constructible_v<int, e8m0>);
  static_assert(e8m0::ceil(3.0f).bits == 129 && e8m0::floor(3.0f).bits == 128 && float(e8m0()) == 1);
  CHECK(e8m0::ceil(3.0f) == e8m0::ceil(3.0));
}
