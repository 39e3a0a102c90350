// SPDX-License-Identifier: Apache-2.0
/// Rounding told a second time, slowly: a search among all values of a format, in double, without bit tricks.
#pragma once

#include "support/catch.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace dsv4::testing {

/// All finite magnitudes of a format, from the numbers of its definition: exponent and mantissa bits, bias
/// and the code of the largest.
class value_grid {
 public:
  value_grid(int mantissa_bits, int bias, int last_code) : last(last_code) {
    const int ones = 1 << mantissa_bits;
    for (int code = 0; code <= last + 1; ++code) {  // one beyond, which overflow is nearest to
      const int exponent = code / ones, mantissa = code % ones;
      values.push_back(exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                     : std::ldexp(ones + mantissa, exponent - bias - mantissa_bits));
      if (code > 0) middles.push_back((values[values.size() - 2] + values.back()) / 2);
    }
  }

  /// The code of the value nearest to `magnitude`, ties to the even code; last + 1 for all that is nearer to
  /// what would come after the last.
  int nearest(double magnitude) const {
    return nearest(magnitude, static_cast<int>(std::lower_bound(middles.begin(), middles.end(), magnitude) -
                                               middles.begin()));
  }
  /// The same, found from `code`, which must not be beyond the result.
  int nearest(double magnitude, int code) const {
    while (code <= last &&
           (magnitude > middles[index(code)] || (magnitude == middles[index(code)] && code % 2 != 0)))
      ++code;
    return code;
  }

  /// Floats of both signs where rounding could go wrong: at, and one unit beside, every value and every
  /// middle; every exponent; subnormals; the ends; NaNs; and a sample of everything.
  template <class F>
  void for_sample(F visit) const {
    const auto both_signs = [&](std::uint32_t magnitude) {
      visit(std::bit_cast<float>(magnitude));
      visit(std::bit_cast<float>(magnitude | 0x80000000u));
    };
    for (const auto& list : {values, middles})
      for (double v : list) {
        if (v > std::numeric_limits<float>::max()) continue;
        const auto word = std::bit_cast<std::uint32_t>(static_cast<float>(v));
        for (std::uint32_t w : {word - 1, word, word + 1})
          if (w < 0x80000000u) both_signs(w);
      }
    for (std::uint32_t exponent = 0; exponent < 256; ++exponent)
      for (std::uint32_t mantissa : {0u, 1u, 0x3fffffu, 0x400000u, 0x400001u, 0x7ffffeu, 0x7fffffu})
        both_signs(exponent << 23 | mantissa);
    for (std::uint64_t word = 0; word < 0x80000000u; word += 32749)
      both_signs(static_cast<std::uint32_t>(word));
  }

  int last;
  std::vector<double> values, middles;

 private:
  static std::size_t index(int code) { return static_cast<std::size_t>(code); }
};

/// Counts differences and keeps the first, which is quicker and shorter than a CHECK for each.
struct difference_count {
  std::uint64_t compared = 0, different = 0;
  std::string first;

  template <class T>
  void operator()(T input, unsigned got, unsigned expected) {
    ++compared;
    if (got == expected) return;
    if (different++ > 0) return;
    std::ostringstream text;
    text << std::hexfloat << input << std::hex << ": got code " << got << ", expected " << expected;
    first = text.str();
  }
  void report() const {
    INFO(first);
    CHECK(compared > 0);
    CHECK(different == 0);
  }
};

/// Checks `convert` (float or double -> code) on a sample of float, and of doubles around every middle.
/// `expected(negative, code)` is the result that belongs to value_grid::nearest's code, `nan(value)` to a
/// NaN.
template <class Convert, class Expected, class Nan>
void check_sample(const value_grid& grid, Convert convert, Expected expected, Nan nan) {
  difference_count count;
  grid.for_sample([&](float x) {
    const unsigned want =
        std::isnan(x) ? nan(x) : expected(std::signbit(x), grid.nearest(std::abs(double(x))));
    count(x, convert(x), want);
    count(double(x), convert(double(x)), want);
  });
  const double tiny = std::numeric_limits<double>::denorm_min(), huge = std::numeric_limits<double>::max();
  const auto check = [&](double x) {
    count(x, convert(x), expected(std::signbit(x), grid.nearest(std::abs(x))));
  };
  for (double sign : {1.0, -1.0}) {
    for (double v : grid.middles)
      for (double x : {std::nextafter(v, 0.0), v, std::nextafter(v, huge)}) check(sign * x);
    for (double x : {tiny, 1e-310, 1e-45, 1e300, huge, std::numeric_limits<double>::infinity()})
      check(sign * x);
  }
  count.report();
}

/// Checks `convert` on every float.
template <class Convert, class Expected, class Nan>
void check_all(const value_grid& grid, Convert convert, Expected expected, Nan nan) {
  difference_count count;
  int code = 0;
  for (std::uint32_t word = 0; word <= 0x7f800000u; ++word) {
    const float x = std::bit_cast<float>(word);
    code = grid.nearest(double(x), code);
    count(x, convert(x), expected(false, code));
    count(-x, convert(-x), expected(true, code));
  }
  for (std::uint32_t word = 0x7f800001u; word < 0x80000000u; ++word)
    for (std::uint32_t sign : {0u, 0x80000000u}) {
      const float x = std::bit_cast<float>(word | sign);
      count(x, convert(x), nan(x));
    }
  CHECK(count.compared == std::uint64_t{1} << 32);
  count.report();
}

}  // namespace dsv4::testing
