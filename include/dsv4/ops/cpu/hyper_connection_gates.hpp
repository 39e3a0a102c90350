// SPDX-License-Identifier: Apache-2.0
/// The coefficients of hyper-connections on host threads: four tokens at a time, each in a lane of its own.
#pragma once

#include <dsv4/ops/cpu/rms_norm.hpp>
#include <dsv4/ops/cpu/row_chunks.hpp>
#include <dsv4/ops/hyper_connection_gates.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace dsv4 {
template <class T>
struct kernel<hyper_connection_gates<T>, exec::cpu> {
  using op = hyper_connection_gates<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = in.x.extent[1] * in.x.extent[2];
    for_streams(in.x.extent[1], [&]<int Streams>() {
      p.parallel_for(in.x.extent[0], 1 + 8192 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; t += lanes) rows<Streams>(in, out, t, std::min(lanes, end - t));
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
                                 for (std::int64_t t = begin; t < end; t += lanes)
                                   rows_backward<Streams>(in, up, g, t, std::min(lanes, end - t), partial,
                                                          scratch.data());
                               });
    });
    for (std::int64_t i = 0; i < g.dbase.extent[0]; ++i) g.dbase(i) += sums(i);
    for (std::int64_t i = 0; i < g.dscale.extent[0]; ++i) g.dscale(i) += sums(mixes + i);
  }

 private:
  static constexpr int widest = 16;
  static constexpr std::int64_t lanes = 4;  ///< tokens at a time: a token's bits do not depend on its lane
  typedef T vec __attribute__((vector_size(4 * sizeof(T))));  // an alias would lose the attribute

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

  /// What both passes begin with, for tokens [t, t + count); lanes without a token repeat the last one.
  template <int Streams>
  struct tokens {
    static constexpr int size = Streams ? Streams : widest;
    int n, mixes;
    bool whole;  ///< not only `pre`
    T rho[lanes];
    vec h[(2 + size) * size];

    tokens(const typename op::inputs& in, std::int64_t t, std::int64_t count)
        : n(Streams ? Streams : static_cast<int>(in.x.extent[1])), whole(in.scale.extent[0] == 3) {
      mixes = whole ? (2 + n) * n : n;
      const std::int64_t width = n * in.x.extent[2];
      for (std::int64_t l = 0; l < lanes; ++l) {
        const std::int64_t row = t + std::min(l, count - 1);
        const T* z = in.z.data + row * in.z.stride[0];
        rho[l] = l < count
                     ? T(1) / std::sqrt(detail::sum_of_squares(in.x.data + row * in.x.stride[0], width) /
                                            T(width) +
                                        T(in.norm_eps))
                     : rho[l - 1];
        for (int i = 0; i < mixes; ++i) h[i][l] = z[i] * rho[l] * in.scale(segment(i)) + in.base(i);
      }
    }
    int segment(int i) const { return i < n ? 0 : i < 2 * n ? 1 : 2; }

    /// Sigmoids of h[first, first + n), in place.
    void sigmoids(int first) {
      for (int i = first; i < first + n; ++i)
        for (std::int64_t l = 0; l < lanes; ++l) h[i][l] = T(1) / (T(1) + std::exp(-h[i][l]));
    }
    /// The softmax of every row of the last n n of h, in place.
    void softmax() {
      for (int j = 0; j < n; ++j) {
        vec* row = h + 2 * n + n * j;
        vec top = row[0], sum{};
        for (int k = 1; k < n; ++k) top = top < row[k] ? row[k] : top;
        for (int k = 0; k < n; ++k) {
          row[k] -= top;
          for (std::int64_t l = 0; l < lanes; ++l) row[k][l] = std::exp(row[k][l]);
          sum += row[k];
        }
        for (int k = 0; k < n; ++k) row[k] /= sum;
      }
    }
    /// One normalisation of m, columns or rows; `inverse` becomes the inverses of the divisors.
    void normalise(vec* m, bool columns, T eps, vec* inverse) const {
      const int across = columns ? 1 : n, along = columns ? n : 1;
      for (int a = 0; a < n; ++a) {
        vec sum = vec{} + eps;
        for (int b = 0; b < n; ++b) sum += m[a * across + b * along];
        inverse[a] = T(1) / sum;
        for (int b = 0; b < n; ++b) m[a * across + b * along] *= inverse[a];
      }
    }
  };

  template <int Streams>
  static void rows(const typename op::inputs& in, const typename op::outputs& out, std::int64_t t,
                   std::int64_t count) {
    tokens<Streams> token(in, t, count);
    const int n = token.n;
    const T eps = T(in.eps);
    token.sigmoids(0);
    for (std::int64_t l = 0; l < count; ++l)
      for (int i = 0; i < n; ++i) out.pre(t + l, i) = token.h[i][l] + eps;
    if (!token.whole) return;
    token.sigmoids(n);
    token.softmax();
    vec* const m = token.h + 2 * n;
    vec inverse[tokens<Streams>::size];
    for (int i = 0; i < n * n; ++i) m[i] += eps;
    for (int step = 0; step < 2 * in.sinkhorn_iters - 1; ++step)
      token.normalise(m, step % 2 == 0, eps, inverse);
    for (std::int64_t l = 0; l < count; ++l) {
      for (int i = 0; i < n; ++i) out.post(t + l, i) = T(2) * token.h[n + i][l];
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < n; ++k) out.comb(t + l, j, k) = m[n * j + k][l];
    }
  }

  /// Per normalisation: its output, and the inverses of its divisors, of all lanes.
  static std::size_t sinkhorn_scratch(const typename op::inputs& in) {
    const std::int64_t n = in.x.extent[1];
    return static_cast<std::size_t>(lanes * (n * n + n) * std::max(0, 2 * in.sinkhorn_iters - 1));
  }

  template <int Streams>
  static void rows_backward(const typename op::inputs& in, const typename op::upstream& up,
                            const typename op::gradients& g, std::int64_t t, std::int64_t count, T* partial,
                            T* scratch) {
    tokens<Streams> token(in, t, count);
    const int n = token.n, mixes = token.mixes;
    const std::int64_t width = n * in.x.extent[2];
    vec* const dh = token.h;  // takes the place of h, part by part
    token.sigmoids(0);
    for (int i = 0; i < n; ++i)
      for (std::int64_t l = 0; l < count; ++l) dh[i][l] = up.dpre(t + l, i) * dh[i][l] * (T(1) - dh[i][l]);
    if (token.whole) {
      token.sigmoids(n);
      for (int i = 0; i < n; ++i)
        for (std::int64_t l = 0; l < count; ++l) {
          const T s = dh[n + i][l];
          dh[n + i][l] = T(2) * up.dpost(t + l, i) * s * (T(1) - s);
        }
      sinkhorn_backward<Streams>(in, up, t, count, token, scratch);
    }
    for (std::int64_t l = 0; l < count; ++l) {
      const T* z = in.z.data + (t + l) * in.z.stride[0];
      const T rho = token.rho[l];
      T along = 0;
      for (int i = 0; i < mixes; ++i) {
        const int segment = token.segment(i);
        const T own = dh[i][l], scaled = own * in.scale(segment);
        partial[i] += own;
        partial[mixes + segment] += own * z[i] * rho;
        along += scaled * z[i];
        if (g.dz.data) g.dz(t + l, i) = rho * scaled;
      }
      if (!g.dx.data) continue;
      const T* x = in.x.data + (t + l) * in.x.stride[0];
      T* dx = g.dx.data + (t + l) * g.dx.stride[0];
      const T factor = -along * rho / T(width) * rho * rho;
      if (g.add_to_dx)
        for (std::int64_t c = 0; c < width; ++c) dx[c] += factor * x[c];
      else
        for (std::int64_t c = 0; c < width; ++c) dx[c] = factor * x[c];
    }
  }

  /// The last n n of token.h become their gradients.
  template <int Streams>
  static void sinkhorn_backward(const typename op::inputs& in, const typename op::upstream& up,
                                std::int64_t t, std::int64_t count, tokens<Streams>& token, T* scratch) {
    constexpr int size = tokens<Streams>::size;
    const int n = token.n, steps = 2 * in.sinkhorn_iters - 1, each = n * n + n;
    token.softmax();
    vec* const softmax = token.h + 2 * n;
    vec m[size * size], d[size * size], inverse[size], sum;
    for (int i = 0; i < n * n; ++i) m[i] = softmax[i] + T(in.eps);
    const auto keep = [&](const vec* from, int count_, T* to) {
      std::memcpy(to, from, static_cast<std::size_t>(count_) * sizeof(vec));
    };
    for (int step = 0; step < steps; ++step) {
      token.normalise(m, step % 2 == 0, T(in.eps), inverse);
      keep(m, n * n, scratch + step * each * lanes);
      keep(inverse, n, scratch + (step * each + n * n) * lanes);
    }
    for (int i = 0; i < n * n; ++i) d[i] = vec{};
    for (std::int64_t l = 0; l < count; ++l)
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < n; ++k) d[n * j + k][l] = up.dcomb(t + l, j, k);
    for (int step = steps - 1; step >= 0; --step) {
      std::memcpy(m, scratch + step * each * lanes, static_cast<std::size_t>(n * n) * sizeof(vec));
      std::memcpy(inverse, scratch + (step * each + n * n) * lanes,
                  static_cast<std::size_t>(n) * sizeof(vec));
      const int across = step % 2 == 0 ? 1 : n, along = step % 2 == 0 ? n : 1;
      for (int a = 0; a < n; ++a) {
        sum = vec{};
        for (int b = 0; b < n; ++b) sum += d[a * across + b * along] * m[a * across + b * along];
        for (int b = 0; b < n; ++b)
          d[a * across + b * along] = (d[a * across + b * along] - sum) * inverse[a];
      }
    }
    for (int j = 0; j < n; ++j) {
      sum = vec{};
      for (int k = 0; k < n; ++k) sum += d[n * j + k] * softmax[n * j + k];
      for (int k = 0; k < n; ++k) softmax[n * j + k] *= d[n * j + k] - sum;
    }
  }
};

}  // namespace dsv4
