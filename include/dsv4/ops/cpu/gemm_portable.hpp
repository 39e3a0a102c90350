// SPDX-License-Identifier: Apache-2.0
/// Matrix micro-kernels for any machine, on the compiler's vectors. Not Eigen's matrix product: its
/// order of summation changes with the number of rows, and its headers would be half of what is compiled.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace dsv4::detail::portable {

template <class T>
struct lanes {
  // Beside AVX2 these are for processors of before 2013, and every program compiles them: the shortest, one
  // element at a time.
  static constexpr bool few = DSV4_X86_KERNELS;
  static constexpr int width = few ? 1 : 16 / static_cast<int>(sizeof(T));
  static constexpr int tile_rows = few ? 1 : 3, outer_rows = tile_rows, outer_vectors = few ? 1 : 4;
  typedef T vec __attribute__((vector_size(width * sizeof(T))));  // an alias would lose the attribute
  using tail = std::int64_t;
  static constexpr std::int64_t outer_depth = 128;

  static void hold(vec&) {}
  static vec zero() { return vec{}; }
  static vec fill(T a) { return a - vec{}; }  // not a sum: -0 stays
  static tail first(std::int64_t n) { return n; }
  static vec load(const T* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static vec load(const T* p, tail n) {
    vec v{};
    for (tail i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static void store(T* p, const vec& v) { std::memcpy(p, &v, sizeof v); }
  static void store(T* p, const vec& v, tail n) {
    for (tail i = 0; i < n; ++i) p[i] = v[i];
  }
  /// Always fused where the machine can: written as a product and a sum, it would be up to the compiler, and
  /// change from one unrolled loop to another.
  static vec fma(const vec& a, const vec& b, const vec& c) {
#if defined(__FMA__) && __has_builtin(__builtin_elementwise_fma)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__FMA__) && !DSV4_X86_KERNELS
    if constexpr (width == 4)
      return __builtin_ia32_vfmaddps(a, b, c);
    else
      return __builtin_ia32_vfmaddpd(a, b, c);
#elif defined(FP_FAST_FMA) && defined(FP_FAST_FMAF)
    vec r;
    for (int i = 0; i < width; ++i) r[i] = std::fma(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
  }
  static vec divide(const vec& a, const vec& b) { return a / b; }
  static vec where_negative(const vec& x, const vec& a, const vec& b) { return x < 0 ? a : b; }
  static vec max(const vec& a, const vec& b) { return a < b ? b : a; }  // a NaN in a stays
  static vec exp(const vec& v) {
    T lane[width];
    store(lane, v);
    for (T& a : lane) a = std::exp(a);
    return load(lane);
  }
  static T reduce(const vec& v) {
    if constexpr (width == 4)
      return (v[0] + v[1]) + (v[2] + v[3]);
    else
      return width == 1 ? v[0] : v[0] + v[width - 1];
  }
  static void reduce4(const vec& a, const vec& b, const vec& c, const vec& d, T* y, bool add) {
    const T sum[4] = {reduce(a), reduce(b), reduce(c), reduce(d)};
    if (add)
      for (int i = 0; i < 4; ++i) y[i] += sum[i];
    else
      std::copy_n(sum, 4, y);
  }
};

#define DSV4_LANE static inline
#define DSV4_TARGET inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#include <dsv4/ops/cpu/softmax_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::portable
