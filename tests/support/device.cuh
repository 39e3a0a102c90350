// SPDX-License-Identifier: Apache-2.0
/// What the tests of GPU kernels share: arrays that exist on both sides, and comparisons.
#pragma once

#include "support/catch.hpp"
#include <dsv4/core/hash.hpp>
#include <dsv4/exec/cuda.cuh>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace dsv4::testing {

inline constexpr space D = space::device;

/// The policy under test, as users have it: kernels overlap. With DSV4_CHECK_LAUNCHES in the environment it
/// waits after every launch, so that a failing kernel is named.
inline const exec::cuda& gpu() {
  static const exec::cuda p(
      exec::cuda::options{.check_every_launch = std::getenv("DSV4_CHECK_LAUNCHES") != nullptr});
  return p;
}

/// Scratch memory for gradients on either side.
inline workspace& host_work() {
  static workspace w;
  return w;
}
inline device_workspace& work() {
  static device_workspace w;
  return w;
}

/// Element i of a stream of numbers in [-1, 1), the same in every run.
inline double noise(std::uint64_t seed, std::int64_t i) {
  return double(detail::splitmix64(seed * 7919u + static_cast<std::uint64_t>(i)) >> 40) * 0x1p-23 - 1;
}

/// The gap between 1 and the next number.
template <class T>
inline constexpr double unit = std::is_same_v<T, double> ? 0x1p-52
                               : std::is_same_v<T, bf16> ? 0x1p-7
                                                         : 0x1p-23;

/// What a kernel may differ by from the reference, which sums in double and rounds once: `terms` roundings of
/// the accumulator (double for double, float otherwise), and for bf16 one last rounding that fell the other
/// way.
template <class T>
double tolerance(double terms) {
  return std::is_same_v<T, bf16> ? unit<bf16> + terms * unit<float> : terms * unit<T>;
}

/// An array on the host and on the device.
template <class T>
class twin {
 public:
  explicit twin(buffer<T> from)
      : host(std::move(from)), start_(host.size()), device(to_device(gpu().stream(), host)) {
    for (std::int64_t i = 0; i < host.size(); ++i) start_[i] = host[i];
  }
  template <class... I>
  auto h(I... extents) {
    return host.as(extents...);
  }
  template <class... I>
  auto d(I... extents) {
    return device.as(extents...);
  }
  /// Brings the device back to what it held at first.
  void reset() {
    copy_elements(gpu().stream(), start_.data(), device.data(), start_.size());
    gpu().synchronise();
  }
  buffer<T> fetch() const { return to_host(gpu().stream(), device); }
  std::int64_t size() const { return host.size(); }

  buffer<T> host;

 private:
  buffer<T> start_;

 public:
  device_buffer<T> device;
};

/// `count` numbers in [-size, size).
template <class T>
twin<T> random(std::int64_t count, std::uint64_t seed = 1, double size = 1) {
  buffer<T> b(count);
  for (std::int64_t i = 0; i < count; ++i) b[i] = T(size * noise(seed, i));
  return twin<T>(std::move(b));
}
/// Integers in [first, last].
template <class T>
twin<T> integers(std::int64_t count, std::int64_t first, std::int64_t last, std::uint64_t seed = 1) {
  buffer<T> b(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto r = static_cast<std::int64_t>(
        detail::splitmix64(seed * 104729u + static_cast<std::uint64_t>(i)) % std::uint64_t(last - first + 1));
    if constexpr (std::is_integral_v<T>)
      b[i] = static_cast<T>(first + r);
    else
      b[i] = T(double(first + r));
  }
  return twin<T>(std::move(b));
}
/// Values that would be noticed where they are not overwritten.
template <class T>
twin<T> poison(std::int64_t count) {
  buffer<T> b(count);
  for (T& v : b) {
    if constexpr (std::is_integral_v<T>)
      v = std::numeric_limits<T>::max() - 7;
    else if constexpr (requires { T(1.0); })
      v = T(double(NAN));
    else
      v = T::from_bits(0xFF);
  }
  return twin<T>(std::move(b));
}

/// Largest |a - b| / (1 + |b|); infinity when a value is not finite.
template <class T>
double difference(const buffer<T>& a, const buffer<T>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (std::int64_t i = 0; i < b.size(); ++i) {
    const double e = std::abs(double(a[i]) - double(b[i])) / (1 + std::abs(double(b[i])));
    if (!(e <= worst)) worst = std::isfinite(e) ? e : INFINITY;
  }
  return worst;
}
template <class T>
bool same_bytes(const buffer<T>& a, const buffer<T>& b) {
  return a.size() == b.size() &&
         (a.size() == 0 ||
          std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

/// Runs the kernel twice from the same start; both times `y` must hold the same bits. Returns them.
template <class T, class Run>
buffer<T> run_twice(twin<T>& y, const Run& run) {
  y.reset();
  run();
  buffer<T> first = y.fetch();
  y.reset();
  run();
  CHECK(same_bytes(first, y.fetch()));
  return first;
}
/// ... and they must be the host's, but for `limit`.
template <class T, class Run>
void check_close(twin<T>& y, double limit, const Run& run) {
  const double d = difference(run_twice(y, run), y.host);
  CHECK(d <= limit);
}

}  // namespace dsv4::testing
