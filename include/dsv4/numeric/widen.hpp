// SPDX-License-Identifier: Apache-2.0
/// Storage types as numbers to compute with, for code that is written once for all of them.
#pragma once

#include <dsv4/core/macros.hpp>

#include <concepts>

namespace dsv4 {

/// The value itself for float and double, the exact float for a storage type.
template <class T>
DSV4_HOST_DEVICE constexpr auto widen(T value) {
  if constexpr (std::floating_point<T>)
    return value;
  else
    return static_cast<float>(value);
}

/// What sums over many `T` are kept in: float for storage types, the type itself else.
template <class T>
using wide_scalar = decltype(widen(T{}));

/// `value` as a double, exactly.
template <class T>
DSV4_HOST_DEVICE constexpr double to_double(T value) {
  return static_cast<double>(widen(value));
}

/// The float nearest to `value` among those with an odd last bit, or `value` where a float holds it: rounding
/// it once more, to a type of at most 22 significant bits, gives what rounding `value` itself gives.
DSV4_HOST_DEVICE constexpr float round_to_odd(float value) { return value; }
DSV4_HOST_DEVICE constexpr float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const double back = static_cast<double>(nearest);
  if (back == value || value != value) return nearest;
  const auto bits = __builtin_bit_cast(unsigned, nearest);
  if ((bits & 0x7fffffffu) == 0x7f800000u) return __builtin_bit_cast(float, bits - 1);  // beyond the largest
  if (bits & 1) return nearest;
  // Towards the value, which lies between two floats of which the other one is odd.
  const bool away = (back < 0 ? -back : back) < (value < 0 ? -value : value);
  if ((bits & 0x7fffffffu) == 0) return value < 0 ? -1.401298464e-45f : 1.401298464e-45f;
  return __builtin_bit_cast(float, away ? bits + 1 : bits - 1);
}

}  // namespace dsv4
