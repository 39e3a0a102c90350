// SPDX-License-Identifier: Apache-2.0
/// Filled buffers and comparisons for the tests of ops.
#pragma once

#include <dsv4/cpu.hpp>
#include <dsv4/model/parameters.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

namespace dsv4::testing {

/// `count` values in [-size, size), the same in every run.
template <class T>
buffer<T> random(std::int64_t count, std::uint64_t seed = 1, double size = 1) {
  buffer<T> b(count);
  for (std::int64_t i = 0; i < count; ++i)
    b[i] = T(size *
             (double(detail::splitmix64(seed * 7919u + static_cast<std::uint64_t>(i)) >> 40) * 0x1p-23 - 1));
  return b;
}

template <class T>
buffer<T> copy(const buffer<T>& from) {
  buffer<T> b(from.size());
  for (std::int64_t i = 0; i < from.size(); ++i) b[i] = from[i];
  return b;
}

/// A buffer whose every value would be noticed.
template <class T>
buffer<T> poison(std::int64_t count) {
  buffer<T> b(count);
  for (T& v : b) v = T(NAN);
  return b;
}

/// Largest |a - b| / (1 + |b|); infinity when a value is not finite or the sizes differ.
template <class T>
double relative_error(const buffer<T>& a, const buffer<T>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    const double e = std::abs(double(a[i]) - double(b[i])) / (1 + std::abs(double(b[i])));
    if (!(e <= worst)) worst = std::isfinite(e) ? e : INFINITY;
  }
  return worst;
}

/// `terms` roundings of the type, doubled: what two orders of one sum may differ by.
template <class T>
double rounding(double terms) {
  return 2 * terms * double(std::numeric_limits<T>::epsilon());
}

template <class T>
bool same(const buffer<T>& a, const buffer<T>& b) {
  if (a.size() != b.size()) return false;
  for (std::int64_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i])) return false;
  return true;
}

}  // namespace dsv4::testing
