// SPDX-License-Identifier: Apache-2.0
/// Matrix micro-kernels for AVX2 and FMA: 3 x 4 accumulators in 16 registers.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx2 {

#define DSV4_LANE [[gnu::target("avx2,fma,f16c"), gnu::always_inline]] static inline

template <class T>
struct lanes;

template <>
struct lanes<float> {
  using vec = __m256;
  using tail = __m256i;
  static constexpr int width = 8;
  static constexpr int tile_rows = 3, outer_rows = 6, outer_vectors = 2;
  static constexpr std::int64_t outer_depth = 256;

  DSV4_LANE void hold(vec& v) { asm("" : "+x"(v)); }
  DSV4_LANE vec zero() { return _mm256_setzero_ps(); }
  DSV4_LANE vec fill(float a) { return _mm256_set1_ps(a); }
  DSV4_LANE tail first(std::int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  DSV4_LANE vec load(const float* p) { return _mm256_loadu_ps(p); }
  DSV4_LANE vec load(const float* p, tail t) { return _mm256_maskload_ps(p, t); }
  DSV4_LANE void store(float* p, vec v) { _mm256_storeu_ps(p, v); }
  DSV4_LANE void store(float* p, vec v, tail t) { _mm256_maskstore_ps(p, t, v); }
  DSV4_LANE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
  DSV4_LANE vec divide(vec a, vec b) { return _mm256_div_ps(a, b); }
  DSV4_LANE vec where_negative(vec x, vec a, vec b) { return _mm256_blendv_ps(b, a, x); }  // by x's sign
  DSV4_LANE vec max(vec a, vec b) { return _mm256_max_ps(b, a); }                          // a NaN in a stays
  /// e^x for x <= 0, within 2 ulp; 0 below the normal range.
  DSV4_LANE vec exp(vec x) {
    const vec low = _mm256_set1_ps(-87.33654f);
    const vec under = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    x = _mm256_max_ps(low, x);
    const vec n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    vec p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    const __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(under, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
  }
  DSV4_LANE __m128 fold(vec v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
  DSV4_LANE float reduce(vec v) {
    const __m128 pairs = _mm_hadd_ps(fold(v), fold(v));
    return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
  }
  DSV4_LANE void reduce4(vec a, vec b, vec c, vec d, float* y, bool add) {
    const __m128 sum = _mm_hadd_ps(_mm_hadd_ps(fold(a), fold(b)), _mm_hadd_ps(fold(c), fold(d)));
    _mm_storeu_ps(y, add ? _mm_add_ps(_mm_loadu_ps(y), sum) : sum);
  }
};

template <>
struct lanes<double> {
  using vec = __m256d;
  using tail = __m256i;
  static constexpr int width = 4;
  static constexpr int tile_rows = 3, outer_rows = 6, outer_vectors = 2;
  static constexpr std::int64_t outer_depth = 256;

  DSV4_LANE void hold(vec& v) { asm("" : "+x"(v)); }
  DSV4_LANE vec zero() { return _mm256_setzero_pd(); }
  DSV4_LANE vec fill(double a) { return _mm256_set1_pd(a); }
  DSV4_LANE tail first(std::int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  DSV4_LANE vec load(const double* p) { return _mm256_loadu_pd(p); }
  DSV4_LANE vec load(const double* p, tail t) { return _mm256_maskload_pd(p, t); }
  DSV4_LANE void store(double* p, vec v) { _mm256_storeu_pd(p, v); }
  DSV4_LANE void store(double* p, vec v, tail t) { _mm256_maskstore_pd(p, t, v); }
  DSV4_LANE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_pd(a, b, c); }
  DSV4_LANE vec divide(vec a, vec b) { return _mm256_div_pd(a, b); }
  DSV4_LANE vec where_negative(vec x, vec a, vec b) { return _mm256_blendv_pd(b, a, x); }  // by x's sign
  DSV4_LANE vec max(vec a, vec b) { return _mm256_max_pd(b, a); }
  DSV4_LANE vec exp(vec x) {
    double lane[width];
    store(lane, x);
    for (double& a : lane) a = std::exp(a);
    return load(lane);
  }
  DSV4_LANE __m128d fold(vec v) { return _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1)); }
  DSV4_LANE double reduce(vec v) { return _mm_cvtsd_f64(_mm_hadd_pd(fold(v), fold(v))); }
  DSV4_LANE void reduce4(vec a, vec b, vec c, vec d, double* y, bool add) {
    const __m128d front = _mm_hadd_pd(fold(a), fold(b)), back = _mm_hadd_pd(fold(c), fold(d));
    _mm_storeu_pd(y, add ? _mm_add_pd(_mm_loadu_pd(y), front) : front);
    _mm_storeu_pd(y + 2, add ? _mm_add_pd(_mm_loadu_pd(y + 2), back) : back);
  }
};

#define DSV4_TARGET [[gnu::target("avx2,fma,f16c")]] inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#include <dsv4/ops/cpu/softmax_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx2
#endif
