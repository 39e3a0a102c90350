// SPDX-License-Identifier: Apache-2.0
/// Hyper-connections on host threads: the streams pass by once, Sinkhorn stays in registers for small n.
#pragma once

#include <dsv4/ops/cpu/rms_norm.hpp>
#include <dsv4/ops/hyper_connection.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {
template <class T>
struct kernel<hyper_connection_gates<T>, exec::cpu> {
  using op = hyper_connection_gates<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    switch (in.x.extent[1]) {
      case 1:
        return rows<1>(p, in, out);
      case 2:
        return rows<2>(p, in, out);
      case 3:
        return rows<3>(p, in, out);
      case 4:
        return rows<4>(p, in, out);
      default:
        return rows<0>(p, in, out);
    }
  }

 private:
  static constexpr int widest = 16;

  template <int Streams>
  static void rows(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.x.extent[1] * in.x.extent[2];
    p.parallel_for(in.x.extent[0], 1 + 8192 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) row<Streams>(in, out, t);
    });
  }

  template <int Streams>
  static void row(const typename op::inputs& in, const typename op::outputs& out, std::int64_t t) {
    const int n = Streams ? Streams : static_cast<int>(in.x.extent[1]);
    const std::int64_t width = n * in.x.extent[2];
    const T* z = in.z.data + t * in.z.stride[0];
    const T rho = T(1) / std::sqrt(detail::sum_of_squares(in.x.data + t * in.x.stride[0], width) / T(width) +
                                   T(in.norm_eps));
    const T eps = T(in.eps);
    const auto h = [&](int i, int segment) { return z[i] * rho * in.scale(segment) + in.base(i); };
    const auto sigmoid = [](T v) { return T(1) / (T(1) + std::exp(-v)); };
    for (int i = 0; i < n; ++i) out.pre(t, i) = sigmoid(h(i, 0)) + eps;
    if (in.scale.extent[0] == 1) return;
    for (int i = 0; i < n; ++i) out.post(t, i) = T(2) * sigmoid(h(n + i, 1));

    constexpr int size = Streams ? Streams : widest;
    T m[size][size];
    for (int j = 0; j < n; ++j) {
      T top = h(2 * n + n * j, 2), sum = 0;
      for (int k = 1; k < n; ++k) top = std::max(top, h(2 * n + n * j + k, 2));
      for (int k = 0; k < n; ++k) sum += m[j][k] = std::exp(h(2 * n + n * j + k, 2) - top);
      for (int k = 0; k < n; ++k) m[j][k] = m[j][k] / sum + eps;
    }
    for (int iteration = 0; iteration < in.sinkhorn_iters; ++iteration) {
      for (int j = 0; iteration > 0 && j < n; ++j) {
        T sum = eps;
        for (int k = 0; k < n; ++k) sum += m[j][k];
        const T inverse = T(1) / sum;
        for (int k = 0; k < n; ++k) m[j][k] *= inverse;
      }
      T sum[size];
      for (int k = 0; k < n; ++k) sum[k] = eps;
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < n; ++k) sum[k] += m[j][k];
      for (int k = 0; k < n; ++k) sum[k] = T(1) / sum[k];
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < n; ++k) m[j][k] *= sum[k];
    }
    for (int j = 0; j < n; ++j)
      for (int k = 0; k < n; ++k) out.comb(t, j, k) = m[j][k];
  }
};

template <class T>
struct kernel<hyper_connection_collapse<T>, exec::cpu> {
  using op = hyper_connection_collapse<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    p.parallel_for(in.x.extent[0], 1 + 8192 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        T* u = out.u.data + t * out.u.stride[0];
        for (std::int64_t i = 0; i < n; ++i) {
          const T* x = in.x.data + t * in.x.stride[0] + i * in.x.stride[1];
          const T pre = in.pre(t, i);
          if (i == 0)
            for (std::int64_t c = 0; c < width; ++c) u[c] = pre * x[c];
          else
            for (std::int64_t c = 0; c < width; ++c) u[c] += pre * x[c];
        }
      }
    });
  }
};

template <class T>
struct kernel<hyper_connection_expand<T>, exec::cpu> {
  using op = hyper_connection_expand<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    constexpr std::int64_t block = 64;  // channels whose mixed streams wait here: X' may overwrite X
    p.parallel_for(in.x.extent[0], 1 + 8192 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      T mixed[16][block];
      for (std::int64_t t = begin; t < end; ++t)
        for (std::int64_t c0 = 0; c0 < width; c0 += block) {
          const std::int64_t count = std::min(block, width - c0);
          const T* v = in.v.data + t * in.v.stride[0] + c0;
          for (std::int64_t k = 0; k < n; ++k) {
            const T post = in.post(t, k);
            for (std::int64_t c = 0; c < count; ++c) mixed[k][c] = post * v[c];
            for (std::int64_t j = 0; j < n; ++j) {
              const T comb = in.comb(t, j, k);
              const T* x = in.x.data + t * in.x.stride[0] + j * in.x.stride[1] + c0;
              for (std::int64_t c = 0; c < count; ++c) mixed[k][c] += comb * x[c];
            }
          }
          for (std::int64_t k = 0; k < n; ++k)
            std::copy_n(mixed[k], count, out.x.data + t * out.x.stride[0] + k * out.x.stride[1] + c0);
        }
    });
  }
};

}  // namespace dsv4
