// SPDX-License-Identifier: Apache-2.0
#include "nearest_even.hpp"
#include "support/catch.hpp"
#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/e5m6.hpp>
#include <dsv4/numeric/fp16.hpp>
#include <dsv4/numeric/fp4.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#if DSV4_X86_KERNELS
#include <xmmintrin.h>
#endif

using namespace dsv4;
using namespace dsv4::testing;

namespace {
constexpr float infinity = std::numeric_limits<float>::infinity(),
                nan_value = std::numeric_limits<float>::quiet_NaN();

/// The definition of a format in numbers, apart from the library's. Codes without sign: the largest finite
/// value, what overflow becomes when it does not saturate, what NaN becomes.
template <class F>
struct definition;
template <>
struct definition<e4m3fn> {
  static constexpr int mantissa_bits = 3, bias = 7, last = 0x7E, overflow = 0x7F, nan = 0x7F, sign = 0x80;
};
template <>
struct definition<e4m3fnuz> {
  static constexpr int mantissa_bits = 3, bias = 8, last = 0x7F, overflow = 0x80, nan = 0x80, sign = 0x80;
};
template <>
struct definition<e5m2> {
  static constexpr int mantissa_bits = 2, bias = 15, last = 0x7B, overflow = 0x7C, nan = 0x7F, sign = 0x80;
};
template <>
struct definition<e2m1> {
  static constexpr int mantissa_bits = 1, bias = 1, last = 7, nan = 0, sign = 8;
};
template <>
struct definition<e5m6> {
  static constexpr int mantissa_bits = 6, bias = 15, last = 0x7BF, overflow = 0x7C0, nan = 0x7FF,
                       sign = 0x800;
};
template <>
struct definition<fp16> {
  static constexpr int mantissa_bits = 10, bias = 15, last = 0x7BFF, overflow = 0x7C00, nan = 0x7FFF,
                       sign = 0x8000;
};

template <class F>
value_grid grid_of() {
  using D = definition<F>;
  return {D::mantissa_bits, D::bias, D::last};
}
/// The code for a sign and a magnitude code, where fnuz has no negative zero and no sign on its NaN.
template <class F>
unsigned with_sign(bool negative, int code) {
  using D = definition<F>;
  if (std::is_same_v<F, e4m3fnuz> && (code == 0 || code == D::nan)) return static_cast<unsigned>(code);
  return static_cast<unsigned>(negative ? code | D::sign : code);
}
template <class F>
constexpr auto saturating = [](auto x) { return unsigned{F(x).bits}; };
template <class F>
constexpr auto saturated = [](bool negative, int code) {
  return with_sign<F>(negative, code > definition<F>::last ? definition<F>::last : code);
};
template <class F>
constexpr auto non_saturating = [](auto x) { return unsigned{F::non_saturating(x).bits}; };
template <class F>
constexpr auto overflowed = [](bool negative, int code) {
  return with_sign<F>(negative, code > definition<F>::last ? definition<F>::overflow : code);
};
template <class F>
constexpr auto kept_nan =
    [](float x) { return std::is_same_v<F, e2m1> ? 0u : with_sign<F>(std::signbit(x), definition<F>::nan); };

template <class F>
F bits(unsigned code) {
  return F::from_bits(static_cast<typename F::storage>(code));
}
}  // namespace

#define DSV4_FORMATS e4m3fn, e4m3fnuz, e5m2, e2m1, e5m6, fp16

TEMPLATE_TEST_CASE("every code decodes to its definition, and comes back", "", DSV4_FORMATS) {
  using F = TestType;
  using D = definition<F>;
  const value_grid grid = grid_of<F>();
  for (int code = 0; code < 2 * D::sign; ++code) {
    const int magnitude = code % D::sign;
    const bool negative = code >= D::sign;
    const F f = bits<F>(static_cast<unsigned>(code));
    const float x = float(f);
    INFO("code " << code);
    REQUIRE(int{f.bits} == code);
    if (std::is_same_v<F, e4m3fnuz> ? code == D::nan
                                    : magnitude > D::last &&
                                          !(std::is_same_v<F, e5m2> && magnitude == 0x7C) &&
                                          !(std::is_same_v<F, e5m6> && magnitude == 0x7C0) &&
                                          !(std::is_same_v<F, fp16> && magnitude == 0x7C00)) {
      CHECK((std::isnan(x) && std::isnan(double(f)) && f.is_nan() && F(x).is_nan()));
      continue;
    }
    CHECK(!f.is_nan());
    CHECK(double(f) == double(x));
    CHECK(std::signbit(x) == negative);
    if (magnitude > D::last) {
      CHECK(std::abs(x) == infinity);
      CHECK(float(F(x)) == (negative ? -F::max() : F::max()));
    } else {
      CHECK(std::abs(double(x)) == grid.values[static_cast<std::size_t>(magnitude)]);
      CHECK(F(x) == f);  // -0 too
      CHECK(F(double(x)) == f);
    }
    if constexpr (!std::is_same_v<F, e2m1>) CHECK(F::non_saturating(x) == f);
  }
  CHECK(F::max() == grid.values[static_cast<std::size_t>(D::last)]);
}

TEMPLATE_TEST_CASE("float and double round to the nearest, ties to even, on a sample", "", DSV4_FORMATS) {
  using F = TestType;
  check_sample(grid_of<F>(), saturating<F>, saturated<F>, kept_nan<F>);
  if constexpr (!std::is_same_v<F, e2m1>)
    check_sample(grid_of<F>(), non_saturating<F>, overflowed<F>, kept_nan<F>);
}

TEMPLATE_TEST_CASE("all 2^32 floats round to the nearest, ties to even", "[.long]", DSV4_FORMATS) {
  using F = TestType;
  check_all(grid_of<F>(), saturating<F>, saturated<F>, kept_nan<F>);
}
TEMPLATE_TEST_CASE("all 2^32 floats round without saturation", "[.long]", e4m3fn, e4m3fnuz, e5m2, e5m6,
                   fp16) {
  using F = TestType;
  check_all(grid_of<F>(), non_saturating<F>, overflowed<F>, kept_nan<F>);
}

TEST_CASE("e2m1: the values, and where ties go") {
  const float table[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (unsigned i = 0; i < 8; ++i) {
    CHECK(float(bits<e2m1>(i)) == table[i]);
    CHECK(float(bits<e2m1>(i | 8)) == -table[i]);
  }
  // Thresholds that lead to 0.5, 1.5 and 3 instead are ties towards zero: another rule, of a published
  // helper.
  const float ties[][2] = {{0.25f, 0}, {0.75f, 1}, {1.25f, 1}, {1.75f, 2},
                           {2.5f, 2},  {3.5f, 4},  {5, 4},     {6.5f, 6}};
  for (const auto& t : ties) {
    CHECK(float(e2m1(t[0])) == t[1]);
    CHECK(float(e2m1(-t[0])) == -t[1]);
    CHECK(float(e2m1(std::nextafter(t[0], 0.0f))) <= t[1]);
    CHECK(float(e2m1(std::nextafter(t[0], 9.0f))) >= t[1]);
  }
  for (float x : {6.0001f, 7.0f, 1e30f, infinity}) CHECK(float(e2m1(x)) == 6);
  CHECK(e2m1(nan_value).bits == 0);
  CHECK(e2m1(-nan_value).bits == 0);
}

TEST_CASE("e4m3: examples") {
  const float examples[][2] = {{17, 16},
                               {18, 18},
                               {19, 20},
                               {0x1p-10f, 0},
                               {0x1.000002p-10f, 0x1p-9f},
                               {0x1.8p-9f, 0x1p-8f},
                               {0x1.4p-8f, 0x1p-8f},
                               {1.0625f, 1},
                               {1.1875f, 1.25f},
                               {272, 256},
                               {0.3f, 0.3125f},
                               {1.0f / 3, 0.34375f},
                               {448, 448},
                               {456, 448},
                               {464, 448}};
  for (const auto& e : examples) {
    CHECK(float(e4m3(e[0])) == e[1]);
    CHECK(float(e4m3(-e[0])) == -e[1]);
    CHECK(e4m3::non_saturating(e[0]) == e4m3(e[0]));
  }
  CHECK(e4m3(0.3f).bits == 0x2A);
  CHECK(e4m3(1.0f / 3).bits == 0x2B);
}

TEST_CASE("limits of OCP OFP8, and overflow with and without saturation") {
  CHECK(e4m3(448.0f).bits == 0x7E);
  CHECK(float(bits<e4m3>(0x08)) == 0x1p-6f);
  CHECK(float(bits<e4m3>(0x01)) == 0x1p-9f);
  CHECK((bits<e4m3>(0x7F).is_nan() && bits<e4m3>(0xFF).is_nan()));
  CHECK(e5m2(57344.0f).bits == 0x7B);
  CHECK(float(bits<e5m2>(0x04)) == 0x1p-14f);
  CHECK(float(bits<e5m2>(0x01)) == 0x1p-16f);
  CHECK((float(bits<e5m2>(0x7C)) == infinity && float(bits<e5m2>(0xFC)) == -infinity));
  for (unsigned code : {0x7Du, 0x7Eu, 0x7Fu, 0xFDu, 0xFEu, 0xFFu}) CHECK(bits<e5m2>(code).is_nan());
  CHECK(e5m6::max() == 65024);
  CHECK(float(bits<e5m6>(0x040)) == 0x1p-14f);
  CHECK(float(bits<e5m6>(0x001)) == 0x1p-20f);
  CHECK(fp16::max() == 65504);
  CHECK(float(bits<fp16>(0x0400)) == 0x1p-14f);
  CHECK(float(bits<fp16>(0x0001)) == 0x1p-24f);

  for (float x : {465.0f, 1e30f, infinity}) {
    CHECK(float(e4m3(x)) == 448);
    CHECK(float(e4m3(-x)) == -448);
    CHECK(e4m3::non_saturating(x).bits == 0x7F);
    CHECK(e4m3::non_saturating(-x).bits == 0xFF);
  }
  for (float x :
       {61440.0f, 1e30f, infinity}) {  // 61440 is the tie between the largest and what comes after it
    CHECK(e5m2(x).bits == 0x7B);
    CHECK(e5m2::non_saturating(x).bits == 0x7C);
    CHECK(e5m2::non_saturating(-x).bits == 0xFC);
  }
  CHECK(e5m2::non_saturating(61439.0f).bits == 0x7B);
}

TEST_CASE("row 51b, the wrong FP8 dialect: e4m3fn and e4m3fnuz are two types") {
  static_assert(std::is_same_v<e4m3, e4m3fn> && !std::is_same_v<e4m3fn, e4m3fnuz>);
  static_assert(!std::is_constructible_v<e4m3fn, e4m3fnuz> && !std::is_constructible_v<e4m3fnuz, e4m3fn>);
  static_assert(!std::is_assignable_v<e4m3fn&, e4m3fnuz> && !std::is_assignable_v<e4m3fnuz&, e4m3fn>);
  CHECK((std::signbit(float(bits<e4m3fn>(0x80))) && float(bits<e4m3fn>(0x80)) == 0));
  CHECK(bits<e4m3fnuz>(0x80).is_nan());
  CHECK(e4m3fnuz(nan_value).bits == 0x80);
  CHECK(e4m3fnuz(-0.0f).bits == 0);
  CHECK(e4m3fnuz(-1e-9f).bits == 0);
  CHECK(e4m3fnuz(1e9f).bits == 0x7F);
  CHECK(e4m3fnuz::non_saturating(247.0f).bits == 0x7F);
  CHECK(e4m3fnuz::non_saturating(-1e9f).bits == 0x80);
  CHECK(e4m3fnuz::max() == 240);
  // The same byte is half as much, wherever both have a number: what a reader of the wrong dialect gets.
  for (unsigned code = 0; code < 256; ++code)
    if (code % 128 != 127 && code != 128) CHECK(float(bits<e4m3fn>(code)) == 2 * float(bits<e4m3fnuz>(code)));
}

TEMPLATE_TEST_CASE("storage types do not turn into numbers or one another by accident", "", DSV4_FORMATS) {
  using F = TestType;
  static_assert(std::is_trivially_copyable_v<F> && sizeof(F) == (definition<F>::sign > 0x80 ? 2 : 1));
  static_assert(!std::is_convertible_v<float, F> && !std::is_convertible_v<F, float>);
  static_assert(!std::is_convertible_v<double, F> && !std::is_convertible_v<F, double>);
  static_assert(std::is_constructible_v<F, float> && std::is_constructible_v<float, F>);
  static_assert(std::is_constructible_v<F, double> && std::is_constructible_v<double, F>);
  static_assert(!std::is_constructible_v<F, int> && !std::is_constructible_v<F, std::uint8_t>);
  static_assert(!std::is_constructible_v<int, F> && !std::is_constructible_v<bool, F>);
  static_assert(F(1.0f) == F(1.0) && float(F(1.0f)) == 1 && F().bits == 0);  // in constant expressions too
  CHECK(F() == F(0.0f));
}

TEST_CASE("a double is rounded once") {
  const double x = 1.0625 + 0x1p-40;  // as a float it would be the tie 1.0625
  CHECK(float(e4m3(x)) == 1.125f);
  CHECK(float(e4m3(static_cast<float>(x))) == 1);
}

TEST_CASE("neither rounding mode nor flush-to-zero changes a conversion") {
  const auto all_codes = [] {
    difference_count count;
    for (unsigned code = 0; code < 0x7F; ++code) {
      volatile unsigned runtime = code;
      count(code, e4m3(float(bits<e4m3>(runtime))).bits, code);
      if (code < 0x7C) count(code, e5m2(float(bits<e5m2>(runtime))).bits, code);
    }
    for (int half = 0; half < 32; ++half) {
      volatile float x = static_cast<float>(2 * half + 1) * 0x1p-10f;  // ties among subnormals
      count(float{x}, e4m3(float{x}).bits, static_cast<unsigned>(half + half % 2));
      if (half >= 8) break;
    }
    count.report();
  };
  for (int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(mode);
    all_codes();
  }
  std::fesetround(FE_TONEAREST);
#if DSV4_X86_KERNELS
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);  // flush results, and treat inputs as zero
  all_codes();
  _mm_setcsr(saved);
#endif
}

TEST_CASE("row 50, nibble order: element 2i is in the low nibble") {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const e2m1x2 pair = e2m1x2::from_bits(static_cast<std::uint8_t>(byte));
    CHECK(pair.even() == bits<e2m1>(byte % 16));
    CHECK(pair.odd() == bits<e2m1>(byte / 16));
    CHECK(e2m1x2(pair.even(), pair.odd()) == pair);
  }
  CHECK(e2m1x2(e2m1(6.0f), e2m1(-0.5f)).bits == 0x97);
}
