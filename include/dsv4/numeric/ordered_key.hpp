// SPDX-License-Identifier: Apache-2.0
/// Floating-point numbers as unsigned integers of the same order, for selections that go bit by bit.
#pragma once

#include <dsv4/core/macros.hpp>

#include <type_traits>

namespace dsv4::detail {

template <class T>
using ordered_key = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;

/// Of two numbers the larger has the larger key; +0 and -0 have the same. NaN lies outside of the infinities.
template <class T>
DSV4_HOST_DEVICE constexpr ordered_key<T> to_ordered(T value) {
  using K = ordered_key<T>;
  constexpr K sign = K{1} << (8 * sizeof(K) - 1);
  if (value == T(0)) return sign;
  const K bits = __builtin_bit_cast(K, value);
  return bits & sign ? ~bits : bits | sign;
}

/// The number that has this key.
template <class T>
DSV4_HOST_DEVICE constexpr T from_ordered(ordered_key<T> key) {
  constexpr ordered_key<T> sign = ordered_key<T>{1} << (8 * sizeof(key) - 1);
  return __builtin_bit_cast(T, key & sign ? key ^ sign : ~key);
}

}  // namespace dsv4::detail
