// SPDX-License-Identifier: Apache-2.0
/// Quantise to a block-scaled format and back, in place: what a value becomes after being stored.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <algorithm>
#include <cmath>

namespace dsv4 {

/// A power-of-two-scaled storage format.
enum class block_format {
  mxfp4,   ///< E2M1, groups of 32, amax at least 6 * 2^-126
  fp8_kv,  ///< E4M3, groups of 64, amax at least 1e-4
};

/// Every row is cut into groups of 32 or 64 channels (the last may be shorter); per group
///   s = 2^ceil(log2(max(amax, floor) / largest)),   x <- s * element(x / s)
/// with round to nearest even (specification, section 9.3).
template <class T, space S = space::host>
struct round_trip {
  static constexpr space memory = S;
  struct inputs {
    block_format format;
  };
  struct outputs {
    matrix_view<T, S> x;  // (N, D), read and written
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::dispatch<round_trip>(p, in, out);
  }

  /// 2^ceil(log2(ratio)), exactly, for ratio > 0.
  static double scale(double ratio) {
    int exponent;
    const double fraction = std::frexp(ratio, &exponent);
    return std::ldexp(1.0, fraction == 0.5 ? exponent - 1 : exponent);
  }
};

namespace detail {
template <class Element, class T>
void round_trip_row(T* x, std::int64_t width, std::int64_t group, double floor) {
  for (std::int64_t begin = 0; begin < width; begin += group) {
    const std::int64_t end = std::min(width, begin + group);
    double amax = floor;
    for (std::int64_t i = begin; i < end; ++i) amax = std::max(amax, std::abs(double(x[i])));
    const double s = round_trip<T>::scale(amax / double(Element::max()));
    for (std::int64_t i = begin; i < end; ++i) x[i] = T(s * double(float(Element(float(double(x[i]) / s)))));
  }
}
}  // namespace detail

template <class T>
struct kernel<round_trip<T>, exec::reference> {
  using op = round_trip<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t) row(in.format, out.x[t]);
  }
  static void row(block_format format, vector_view<T> x) {
    if (format == block_format::mxfp4)
      detail::round_trip_row<e2m1>(x.data, x.extent[0], 32, 6 * std::ldexp(1.0, -126));
    else
      detail::round_trip_row<e4m3>(x.data, x.extent[0], 64, 1e-4);
  }
};

template <class T>
struct kernel<round_trip<T>, exec::cpu> {
  using op = round_trip<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.parallel_for(out.x.extent[0], 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) kernel<op, exec::reference>::row(in.format, out.x[t]);
    });
  }
};

}  // namespace dsv4
