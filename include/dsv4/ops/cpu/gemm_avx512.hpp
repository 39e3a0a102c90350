// SPDX-License-Identifier: Apache-2.0
/// Matrix micro-kernels for AVX-512: 6 x 4 accumulators in 32 registers. Lanes are added in another order
/// than under AVX2, so the two differ by rounding.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::avx512 {

#define DSV4_LANE [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma"), gnu::always_inline]] static inline

template <class T>
struct lanes;

template <>
struct lanes<float> {
  using vec = __m512;
  using tail = __mmask16;
  static constexpr int width = 16;
  static constexpr int tile_rows = 6, outer_rows = 6, outer_vectors = 4;
  static constexpr std::int64_t outer_depth = 128;

  DSV4_LANE void hold(vec& v) { asm("" : "+v"(v)); }
  DSV4_LANE vec zero() { return _mm512_setzero_ps(); }
  DSV4_LANE vec fill(float a) { return _mm512_set1_ps(a); }
  DSV4_LANE tail first(std::int64_t n) { return static_cast<tail>((1u << n) - 1u); }
  DSV4_LANE vec load(const float* p) { return _mm512_loadu_ps(p); }
  DSV4_LANE vec load(const float* p, tail t) { return _mm512_maskz_loadu_ps(t, p); }
  DSV4_LANE void store(float* p, vec v) { _mm512_storeu_ps(p, v); }
  DSV4_LANE void store(float* p, vec v, tail t) { _mm512_mask_storeu_ps(p, t, v); }
  DSV4_LANE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
  DSV4_LANE vec divide(vec a, vec b) { return _mm512_div_ps(a, b); }
  DSV4_LANE vec where_negative(vec x, vec a, vec b) {  // by x's sign
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  DSV4_LANE vec max(vec a, vec b) { return _mm512_maskz_max_ps(0xffff, b, a); }  // a NaN in a stays
  /// e^x for x <= 0, within 2 ulp; 0 below the normal range.
  DSV4_LANE vec exp(vec x) {
    const vec low = _mm512_set1_ps(-87.33654f);
    const tail normal = _mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ);
    x = _mm512_maskz_max_ps(0xffff, low, x);
    const vec n = _mm512_maskz_roundscale_ps(0xffff, _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    vec r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    vec p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(normal, p, n);
  }
  DSV4_LANE __m128 fold(vec v) {
    const __m256 high = _mm512_maskz_extractf32x8_ps(0xff, v, 1);
    const __m256 half = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, v, 0), high);
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  DSV4_LANE float reduce(vec v) {
    const __m128 pairs = _mm_hadd_ps(fold(v), fold(v));
    return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
  }
  DSV4_LANE void reduce4(vec a, vec b, vec c, vec d, float* y, bool add) {
    put(_mm_hadd_ps(_mm_hadd_ps(fold(a), fold(b)), _mm_hadd_ps(fold(c), fold(d))), y, add);
  }
  DSV4_LANE void put(__m128 sum, float* y, bool add) {
    _mm_storeu_ps(y, add ? _mm_add_ps(_mm_loadu_ps(y), sum) : sum);
  }
  /// The steps of reduce4's tree for several vectors at once: a's halves, and b's, added ...
  DSV4_LANE vec add_halves(vec a, vec b) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b),
                         _mm512_maskz_shuffle_f32x4(0xffff, a, b, _MM_SHUFFLE(1, 0, 3, 2)));
  }
  /// ... the quarters of four such halves ...
  DSV4_LANE vec add_quarters(vec a, vec b) {
    return _mm512_add_ps(_mm512_maskz_shuffle_f32x4(0xffff, a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm512_maskz_shuffle_f32x4(0xffff, a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }
  /// ... and neighbours within quarters.
  DSV4_LANE vec add_pairs(vec a, vec b) {
    return _mm512_add_ps(_mm512_maskz_shuffle_ps(0xffff, a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm512_maskz_shuffle_ps(0xffff, a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }
  /// reduce4 of four rows, with half of the instructions: a quarter of a vector holds a row.
  DSV4_LANE void reduce4(const vec (&a)[4], const vec (&b)[4], const vec (&c)[4], const vec (&d)[4], float* y,
                         std::int64_t ldy, bool add) {
    vec column[4];
    DSV4_UNROLL for (int j = 0; j < 4; ++j) column[j] =
        add_quarters(add_halves(a[j], b[j]), add_halves(c[j], d[j]));
    const vec rows = add_pairs(add_pairs(column[0], column[1]), add_pairs(column[2], column[3]));
    put(_mm512_maskz_extractf32x4_ps(0xf, rows, 0), y, add);
    put(_mm512_maskz_extractf32x4_ps(0xf, rows, 1), y + ldy, add);
    put(_mm512_maskz_extractf32x4_ps(0xf, rows, 2), y + 2 * ldy, add);
    put(_mm512_maskz_extractf32x4_ps(0xf, rows, 3), y + 3 * ldy, add);
  }
  /// reduce4 of two rows.
  DSV4_LANE void reduce4(const vec (&a)[4], const vec (&b)[4], float* y, std::int64_t ldy, bool add) {
    const vec even = add_quarters(add_halves(a[0], b[0]), add_halves(a[2], b[2]));
    const vec odd = add_quarters(add_halves(a[1], b[1]), add_halves(a[3], b[3]));
    const vec pairs = add_pairs(even, odd);
    const __m256 rows = _mm256_hadd_ps(_mm512_maskz_extractf32x8_ps(0xff, pairs, 0),
                                       _mm512_maskz_extractf32x8_ps(0xff, pairs, 1));
    put(_mm256_castps256_ps128(rows), y, add);
    put(_mm256_extractf128_ps(rows, 1), y + ldy, add);
  }
};

template <>
struct lanes<double> {
  using vec = __m512d;
  using tail = __mmask8;
  static constexpr int width = 8;
  static constexpr int tile_rows = 6, outer_rows = 6, outer_vectors = 4;
  static constexpr std::int64_t outer_depth = 128;

  DSV4_LANE void hold(vec& v) { asm("" : "+v"(v)); }
  DSV4_LANE vec zero() { return _mm512_setzero_pd(); }
  DSV4_LANE vec fill(double a) { return _mm512_set1_pd(a); }
  DSV4_LANE tail first(std::int64_t n) { return static_cast<tail>((1u << n) - 1u); }
  DSV4_LANE vec load(const double* p) { return _mm512_loadu_pd(p); }
  DSV4_LANE vec load(const double* p, tail t) { return _mm512_maskz_loadu_pd(t, p); }
  DSV4_LANE void store(double* p, vec v) { _mm512_storeu_pd(p, v); }
  DSV4_LANE void store(double* p, vec v, tail t) { _mm512_mask_storeu_pd(p, t, v); }
  DSV4_LANE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
  DSV4_LANE vec divide(vec a, vec b) { return _mm512_div_pd(a, b); }
  DSV4_LANE vec where_negative(vec x, vec a, vec b) {  // by x's sign
    return _mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(x)), b, a);
  }
  DSV4_LANE vec max(vec a, vec b) { return _mm512_maskz_max_pd(0xff, b, a); }
  DSV4_LANE vec exp(vec x) {
    double lane[width];
    store(lane, x);
    for (double& a : lane) a = std::exp(a);
    return load(lane);
  }
  DSV4_LANE __m128d fold(vec v) {
    const __m256d high = _mm512_maskz_extractf64x4_pd(0xf, v, 1);
    const __m256d half = _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xf, v, 0), high);
    return _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  }
  DSV4_LANE double reduce(vec v) { return _mm_cvtsd_f64(_mm_hadd_pd(fold(v), fold(v))); }
  DSV4_LANE void reduce4(vec a, vec b, vec c, vec d, double* y, bool add) {
    const __m128d front = _mm_hadd_pd(fold(a), fold(b)), back = _mm_hadd_pd(fold(c), fold(d));
    _mm_storeu_pd(y, add ? _mm_add_pd(_mm_loadu_pd(y), front) : front);
    _mm_storeu_pd(y + 2, add ? _mm_add_pd(_mm_loadu_pd(y + 2), back) : back);
  }
};

#define DSV4_TARGET [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma")]] inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#include <dsv4/ops/cpu/softmax_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx512
#endif
