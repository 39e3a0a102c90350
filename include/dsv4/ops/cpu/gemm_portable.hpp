// SPDX-License-Identifier: Apache-2.0
/// Matrix micro-kernels for any machine, on Eigen's 16-byte arrays. Not Eigen's own matrix product: its order
/// of summation changes with the number of rows.
#pragma once

#include <dsv4/ops/cpu/gemm_kernels.hpp>
#include <dsv4/tensor/eigen.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4::detail::portable {

template <class T>
struct lanes {
  using vec = eigen_packet<T>;
  using tail = std::int64_t;
  static constexpr int width = vec::SizeAtCompileTime;
  static constexpr int tile_rows = 3;

  static vec zero() { return vec::Zero(); }
  static vec fill(T a) { return vec::Constant(a); }
  static tail first(std::int64_t n) { return n; }
  static vec load(const T* p) { return Eigen::Map<const vec>(p); }
  static vec load(const T* p, tail n) {
    vec v = zero();
    for (tail i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static void store(T* p, const vec& v) { Eigen::Map<vec>{p} = v; }
  static void store(T* p, const vec& v, tail n) {
    for (tail i = 0; i < n; ++i) p[i] = v[i];
  }
  static vec fma(const vec& a, const vec& b, const vec& c) { return multiply_add<T>(a, b, c); }
  static vec max(const vec& a, const vec& b) { return a.max(b); }
  static vec exp(const vec& v) {
    return v.unaryExpr([](T a) { return std::exp(a); });
  }
  static T reduce(const vec& v) {
    if constexpr (width == 4)
      return (v[0] + v[1]) + (v[2] + v[3]);
    else
      return v[0] + v[1];
  }
  static void reduce4(const vec& a, const vec& b, const vec& c, const vec& d, T* y, bool add) {
    const T sum[4] = {reduce(a), reduce(b), reduce(c), reduce(d)};
    for (int i = 0; i < 4; ++i) y[i] = add ? y[i] + sum[i] : sum[i];
  }
};

#define DSV4_LANE static inline
#define DSV4_TARGET inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::portable
