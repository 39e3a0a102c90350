// SPDX-License-Identifier: Apache-2.0
/// RMSNorm on host threads: sixteen partial sums per row, in an order that the width alone fixes.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/row_chunks.hpp>
#include <dsv4/ops/rms_norm.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {
namespace detail {
/// sum_i x[i] y[i] with sixteen accumulators, so that compilers vectorise it without reassociating, and sums
/// do not wait for each other.
template <class T>
T sum_of_products(const T* x, const T* y, std::int64_t width) {
  constexpr int lanes = 16;
  T lane[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= width; i += lanes)
    DSV4_UNROLL for (int l = 0; l < lanes; ++l) lane[l] += x[i + l] * y[i + l];
  for (int l = 0; i + l < width; ++l) lane[l] += x[i + l] * y[i + l];
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

template <class T>
T sum_of_squares(const T* x, std::int64_t width) {
  return sum_of_products(x, x, width);
}
}  // namespace detail

template <class T>
struct kernel<rms_norm<T>, exec::cpu> {
  using op = rms_norm<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.x.extent[1];
    p.parallel_for(in.x.extent[0], 1 + 16384 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* x = in.x.data + t * in.x.stride[0];
        T* y = out.y.data + t * out.y.stride[0];
        const T r = T(1) / std::sqrt(detail::sum_of_squares(x, width) / T(width) + T(in.eps));
        if (const T* weight = in.weight.data)
          for (std::int64_t i = 0; i < width; ++i) y[i] = x[i] * r * weight[i];
        else
          for (std::int64_t i = 0; i < width; ++i) y[i] = x[i] * r;
      }
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t width = in.x.extent[1];
    const T* const weight = in.weight.data;
    // Narrow rows (heads) come in large numbers: chunks of about as many elements.
    const std::int64_t rows_each = std::max(detail::chunk_rows, 8192 / (width + 1));
    detail::sum_over_rows<T>(
        p, w, in.x.extent[0], width, g.dweight.data,
        [&](std::int64_t begin, std::int64_t end, T* dweight) {
          for (std::int64_t t = begin; t < end; ++t) {
            const T* x = in.x.data + t * in.x.stride[0];
            const T* dy = up.dy.data + t * up.dy.stride[0];
            const T r = T(1) / std::sqrt(detail::sum_of_squares(x, width) / T(width) + T(in.eps));
            if (dweight)
              for (std::int64_t i = 0; i < width; ++i) dweight[i] += dy[i] * x[i] * r;
            if (!g.dx.data) continue;
            T* dx = g.dx.data + t * g.dx.stride[0];
            if (weight) {
              const T along = r * r * weighted_dot(dy, x, weight, width) / T(width);
              for (std::int64_t i = 0; i < width; ++i) dx[i] = r * (dy[i] * weight[i] - x[i] * along);
            } else {
              const T along = r * r * detail::sum_of_products(dy, x, width) / T(width);
              for (std::int64_t i = 0; i < width; ++i) dx[i] = r * (dy[i] - x[i] * along);
            }
          }
        },
        rows_each);
  }

 private:
  static T weighted_dot(const T* a, const T* b, const T* weight, std::int64_t width) {
    T lane[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= width; i += 8)
      for (int l = 0; l < 8; ++l) lane[l] += a[i + l] * weight[i + l] * b[i + l];
    for (int l = 0; i + l < width; ++l) lane[l] += a[i + l] * weight[i + l] * b[i + l];
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
  }
};

}  // namespace dsv4
