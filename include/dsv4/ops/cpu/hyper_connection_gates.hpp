// SPDX-License-Identifier: Apache-2.0
/// The coefficients of hyper-connections on host threads: Sinkhorn stays in registers for small n.
#pragma once

#include <dsv4/ops/cpu/rms_norm.hpp>
#include <dsv4/ops/cpu/row_chunks.hpp>
#include <dsv4/ops/hyper_connection_gates.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace dsv4 {
template <class T>
struct kernel<hyper_connection_gates<T>, exec::cpu> {
  using op = hyper_connection_gates<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.x.extent[1] * in.x.extent[2];
    for_streams(in.x.extent[1], [&]<int Streams>() {
      p.parallel_for(in.x.extent[0], 1 + 8192 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) row<Streams>(in, out, t);
      });
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t mixes = in.z.extent[1], segments = in.scale.extent[0];
    workspace::scope scope(w);
    // dbase and dscale as one row, so that one pass over the rows sums both.
    const auto sums = w.take<T>(mixes + segments);
    std::fill_n(sums.data, mixes + segments, T(0));
    for_streams(in.x.extent[1], [&]<int Streams>() {
      detail::sum_over_rows<T>(p, w, in.x.extent[0], mixes + segments, sums.data,
                               [&](std::int64_t begin, std::int64_t end, T* partial) {
                                 std::vector<T> scratch(sinkhorn_scratch(in));
                                 for (std::int64_t t = begin; t < end; ++t)
                                   row_backward<Streams>(in, up, g, t, partial, scratch.data());
                               });
    });
    for (std::int64_t i = 0; i < g.dbase.extent[0]; ++i) g.dbase(i) += sums(i);
    for (std::int64_t i = 0; i < g.dscale.extent[0]; ++i) g.dscale(i) += sums(mixes + i);
  }

 private:
  static constexpr int widest = 16;

  /// Calls body<n>(): the usual numbers of streams at compile time, others as 0.
  template <class Body>
  static void for_streams(std::int64_t n, const Body& body) {
    switch (n) {
      case 1:
        return body.template operator()<1>();
      case 2:
        return body.template operator()<2>();
      case 3:
        return body.template operator()<3>();
      case 4:
        return body.template operator()<4>();
      default:
        return body.template operator()<0>();
    }
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

  /// Per normalisation: its output, and the inverses of its divisors.
  static std::size_t sinkhorn_scratch(const typename op::inputs& in) {
    const std::int64_t n = in.x.extent[1];
    return static_cast<std::size_t>((n * n + n) * std::max(0, 2 * in.sinkhorn_iters - 1));
  }

  template <int Streams>
  static void row_backward(const typename op::inputs& in, const typename op::upstream& up,
                           const typename op::gradients& g, std::int64_t t, T* partial, T* scratch) {
    constexpr int size = Streams ? Streams : widest;
    const int n = Streams ? Streams : static_cast<int>(in.x.extent[1]);
    const std::int64_t width = n * in.x.extent[2];
    const bool whole = in.scale.extent[0] == 3;
    const int mixes = whole ? (2 + n) * n : n;
    const T* x = in.x.data + t * in.x.stride[0];
    const T* z = in.z.data + t * in.z.stride[0];
    const T rho = T(1) / std::sqrt(detail::sum_of_squares(x, width) / T(width) + T(in.norm_eps));
    const auto h = [&](int i, int segment) { return z[i] * rho * in.scale(segment) + in.base(i); };
    const auto sigmoid = [](T v) { return T(1) / (T(1) + std::exp(-v)); };
    T dh[(2 + size) * size];
    for (int i = 0; i < n; ++i) {
      const T s = sigmoid(h(i, 0));
      dh[i] = up.dpre(t, i) * s * (T(1) - s);
    }
    if (whole) {
      for (int i = 0; i < n; ++i) {
        const T s = sigmoid(h(n + i, 1));
        dh[n + i] = T(2) * up.dpost(t, i) * s * (T(1) - s);
      }
      sinkhorn_backward<Streams>(in, up, t, h, dh + 2 * n, scratch);
    }

    T along = 0;
    for (int i = 0; i < mixes; ++i) {
      const int segment = i < n ? 0 : i < 2 * n ? 1 : 2;
      const T scaled = dh[i] * in.scale(segment);
      partial[i] += dh[i];
      partial[mixes + segment] += dh[i] * z[i] * rho;
      along += scaled * z[i];
      if (g.dz.data) g.dz(t, i) = rho * scaled;
    }
    if (!g.dx.data) return;
    T* dx = g.dx.data + t * g.dx.stride[0];
    const T factor = -along * rho / T(width) * rho * rho;
    if (g.add_to_dx)
      for (std::int64_t c = 0; c < width; ++c) dx[c] += factor * x[c];
    else
      for (std::int64_t c = 0; c < width; ++c) dx[c] = factor * x[c];
  }

  template <int Streams, class H>
  static void sinkhorn_backward(const typename op::inputs& in, const typename op::upstream& up,
                                std::int64_t t, const H& h, T* dh, T* scratch) {
    constexpr int size = Streams ? Streams : widest;
    const int n = Streams ? Streams : static_cast<int>(in.x.extent[1]);
    const int steps = 2 * in.sinkhorn_iters - 1, each = n * n + n;
    const T eps = T(in.eps);
    T softmax[size * size], m[size * size], d[size * size];
    for (int j = 0; j < n; ++j) {
      T top = h(2 * n + n * j, 2), sum = 0;
      for (int k = 1; k < n; ++k) top = std::max(top, h(2 * n + n * j + k, 2));
      for (int k = 0; k < n; ++k) sum += softmax[n * j + k] = std::exp(h(2 * n + n * j + k, 2) - top);
      for (int k = 0; k < n; ++k) softmax[n * j + k] /= sum, m[n * j + k] = softmax[n * j + k] + eps;
    }
    for (int step = 0; step < steps; ++step) {
      T* inverse = scratch + step * each + n * n;
      for (int a = 0; a < n; ++a) inverse[a] = eps;
      if (step % 2 == 0) {  // columns
        for (int j = 0; j < n; ++j)
          for (int k = 0; k < n; ++k) inverse[k] += m[n * j + k];
        for (int k = 0; k < n; ++k) inverse[k] = T(1) / inverse[k];
        for (int j = 0; j < n; ++j)
          for (int k = 0; k < n; ++k) m[n * j + k] *= inverse[k];
      } else {
        for (int j = 0; j < n; ++j) {
          for (int k = 0; k < n; ++k) inverse[j] += m[n * j + k];
          inverse[j] = T(1) / inverse[j];
          for (int k = 0; k < n; ++k) m[n * j + k] *= inverse[j];
        }
      }
      std::copy_n(m, n * n, scratch + step * each);
    }
    for (int j = 0; j < n; ++j)
      for (int k = 0; k < n; ++k) d[n * j + k] = up.dcomb(t, j, k);
    for (int step = steps - 1; step >= 0; --step) {
      const T* y = scratch + step * each;
      const T* inverse = y + n * n;
      if (step % 2 == 0) {
        T sum[size] = {};
        for (int j = 0; j < n; ++j)
          for (int k = 0; k < n; ++k) sum[k] += d[n * j + k] * y[n * j + k];
        for (int j = 0; j < n; ++j)
          for (int k = 0; k < n; ++k) d[n * j + k] = (d[n * j + k] - sum[k]) * inverse[k];
      } else {
        for (int j = 0; j < n; ++j) {
          T sum = 0;
          for (int k = 0; k < n; ++k) sum += d[n * j + k] * y[n * j + k];
          for (int k = 0; k < n; ++k) d[n * j + k] = (d[n * j + k] - sum) * inverse[j];
        }
      }
    }
    for (int j = 0; j < n; ++j) {
      T sum = 0;
      for (int k = 0; k < n; ++k) sum += d[n * j + k] * softmax[n * j + k];
      for (int k = 0; k < n; ++k) dh[n * j + k] = softmax[n * j + k] * (d[n * j + k] - sum);
    }
  }
};

}  // namespace dsv4
