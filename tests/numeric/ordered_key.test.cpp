// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/numeric/ordered_key.hpp>

#include <cstddef>
#include <limits>
#include <vector>

TEMPLATE_TEST_CASE("keys are in the order of their numbers", "[ordered_key]", float, double) {
  using T = TestType;
  using limits = std::numeric_limits<T>;
  using dsv4::detail::from_ordered;
  using dsv4::detail::to_ordered;
  const std::vector<T> ascending{-limits::infinity(),
                                 limits::lowest(),
                                 T(-2),
                                 T(-1.5),
                                 -limits::min(),
                                 -limits::denorm_min(),
                                 T(0),
                                 limits::denorm_min(),
                                 limits::min(),
                                 T(1),
                                 T(1) + limits::epsilon(),
                                 limits::max(),
                                 limits::infinity()};
  for (std::size_t i = 0; i + 1 < ascending.size(); ++i)
    CHECK(to_ordered(ascending[i]) < to_ordered(ascending[i + 1]));
  for (const T value : ascending) CHECK(from_ordered<T>(to_ordered(value)) == value);
  CHECK(to_ordered(T(-0.0)) == to_ordered(T(0.0)));
  CHECK(to_ordered(limits::quiet_NaN()) > to_ordered(limits::infinity()));
  CHECK(to_ordered(-limits::quiet_NaN()) < to_ordered(-limits::infinity()));
  static_assert(sizeof(to_ordered(T(1))) == sizeof(T));
}
