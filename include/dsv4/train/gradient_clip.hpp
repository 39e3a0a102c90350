// SPDX-License-Identifier: Apache-2.0
/// Clipping by the global norm: one factor for all gradients of a model.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/core/macros.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>
#if DSV4_X86_KERNELS
#include <immintrin.h>
#endif

namespace dsv4 {

/// sum = sum_i x[i]^2 in double, whatever T: chunks of 4096 elements, added in index order. The result does
/// not depend on the number of threads.
template <class T, space S = space::host>
struct squared_norm {
  static constexpr space memory = S;
  static constexpr std::int64_t chunk = 4096;
  struct inputs {
    vector_view<const T, S> x;  // (N)
  };
  struct outputs {
    vector_view<double, S> sum;  // (1)
  };
  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("squared_norm", "sum", out.sum.extent[0], 1);
    workspace_scope<S> scope(w);
    const auto sums = take<double>(w, (in.x.extent[0] + chunk - 1) / chunk);
    detail::dispatch<squared_norm>(p, in, out, sums);
  }
};

/// The square root of the sum of squares of all gradients that have one: not of router biases. Infinite or
/// NaN when a gradient is. The result is the host's: on a device this waits for all that was queued.
template <model_config C, class T, numerics_config Q, space S, policy P>
double gradient_norm(const P& p, basic_workspace<S>& w, const parameter_store<C, T, Q, S>& gradients) {
  const workspace_scope<S> scope(w);
  auto views = gradients.views();
  std::vector<vector_view<const T, S>> counted;
  for_each_parameter<C>(views, [&]<class U, int R>(const parameter_info& info, view<U, R, S>& v) {
    if constexpr (std::is_same_v<U, T>)
      if (!info.name.ends_with("gate.bias")) counted.push_back({v.data, v.size()});
  });
  const auto sums = take<double>(w, static_cast<std::int64_t>(counted.size()));
  for (std::size_t i = 0; i < counted.size(); ++i)
    squared_norm<T, S>::forward(p, w, {counted[i]}, {{sums.data + i, 1}});
  double sum = 0;
  for (double part : fetched(p, sums)) sum += part;
  return std::sqrt(sum);
}

/// What to multiply gradients of norm `norm` by, so that their norm is at most `most` (1 in V3; V4 does not
/// say). Throws contract_error when `norm` is not finite: such gradients must not reach the weights, skip
/// the step instead.
inline double clip_scale(double norm, double most = 1) {
  if (!std::isfinite(norm))
    throw contract_error("clip_scale", "norm", "a finite number", std::to_string(norm));
  return norm > most ? most / norm : 1;
}

template <class T>
struct kernel<squared_norm<T>, exec::reference> {
  using op = squared_norm<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double>&) {
    long double sum = 0;
    for (std::int64_t i = 0; i < in.x.extent[0]; ++i) sum += static_cast<long double>(in.x(i)) * in.x(i);
    out.sum(0) = double(sum);
  }
};

namespace detail {
/// lane[i % 8] += x[i]^2 in the order of i; n a multiple of 8. Memory is the limit, and its own look-ahead
/// too short.
template <class T>
void add_squares(const T* x, std::int64_t n, double (&lane)[8]) {
  for (std::int64_t i = 0; i < n; i += 8) {
    __builtin_prefetch(x + i + 1024);
    for (int l = 0; l < 8; ++l) lane[l] += double(x[i + l]) * double(x[i + l]);
  }
}
#if DSV4_X86_KERNELS
/// The same bits in fewer instructions, so that more of memory is asked for at a time.
[[gnu::target("avx2")]] inline void add_squares_avx2(const float* x, std::int64_t n, double (&lane)[8]) {
  __m256d low = _mm256_loadu_pd(lane), high = _mm256_loadu_pd(lane + 4);
  for (std::int64_t i = 0; i < n; i += 8) {
    __builtin_prefetch(x + i + 1024);
    const __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), b = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
    low = _mm256_add_pd(low, _mm256_mul_pd(a, a));
    high = _mm256_add_pd(high, _mm256_mul_pd(b, b));
  }
  _mm256_storeu_pd(lane, low), _mm256_storeu_pd(lane + 4, high);
}
#endif
}  // namespace detail

template <class T>
struct kernel<squared_norm<T>, exec::cpu> {
  using op = squared_norm<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double>& sums) {
    p.parallel_for(sums.extent[0], 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) {
        const T* const x = in.x.data + c * op::chunk;
        const std::int64_t n = std::min(op::chunk, in.x.extent[0] - c * op::chunk), whole = n / 8 * 8;
        double lane[8] = {};  // so that compilers vectorise without reordering
        add(x, whole, lane);
        for (std::int64_t i = whole; i < n; ++i) lane[i % 8] += double(x[i]) * double(x[i]);
        sums(c) = ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
      }
    });
    out.sum(0) = 0;
    for (std::int64_t c = 0; c < sums.extent[0]; ++c) out.sum(0) += sums(c);
  }

 private:
  static void add(const T* x, std::int64_t n, double (&lane)[8]) {
#if DSV4_X86_KERNELS
    if constexpr (std::is_same_v<T, float>)
      if (__builtin_cpu_supports("avx2")) return detail::add_squares_avx2(x, n, lane);
#endif
    detail::add_squares(x, n, lane);
  }
};

}  // namespace dsv4
