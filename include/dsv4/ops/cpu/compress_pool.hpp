// SPDX-License-Identifier: Apache-2.0
/// Gated pooling on host threads: channels are lanes, tokens pass by twice.
#pragma once

#include <dsv4/ops/compress_pool.hpp>
#include <dsv4/ops/cpu/row_chunks.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace dsv4 {
template <class T>
struct kernel<compress_pool<T>, exec::cpu> {
  using op = compress_pool<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t m = in.bias.extent[0], width = out.y.extent[1];
    p.parallel_for(out.y.extent[0], 1 + 2048 / (m * width), [&](std::int64_t first, std::int64_t last) {
      std::vector<T> top(static_cast<std::size_t>(width)), sum(top.size());
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t start = (in.first_entry + i) * m,
                           begin = in.overlap && start > 0 ? start - m : start;
        T* y = out.y.data + i * out.y.stride[0];
        // The group's own tokens use the second half of the channels, the previous group's the first.
        const auto rows = [&](std::int64_t t) {
          const std::int64_t shift = in.overlap && t >= start ? width : 0, row = t - in.first_position;
          struct {
            const T *kv, *gate, *bias;
          } r{in.kv.data + row * in.kv.stride[0] + shift, in.gate.data + row * in.gate.stride[0] + shift,
              in.bias.data + t % m * in.bias.stride[0] + shift};
          return r;
        };
        std::fill(top.begin(), top.end(), -std::numeric_limits<T>::infinity());
        std::fill(sum.begin(), sum.end(), T(0));
        std::fill_n(y, width, T(0));
        for (std::int64_t t = begin; t < start + m; ++t) {
          const auto r = rows(t);
          for (std::int64_t f = 0; f < width; ++f) {
            const T logit = r.gate[f] + r.bias[f];
            T& high = top[static_cast<std::size_t>(f)];
            high = logit > high ? logit : high;
          }
        }
        for (std::int64_t t = begin; t < start + m; ++t) {
          const auto r = rows(t);
          for (std::int64_t f = 0; f < width; ++f) {
            const T w = std::exp(r.gate[f] + r.bias[f] - top[static_cast<std::size_t>(f)]);
            sum[static_cast<std::size_t>(f)] += w;
            y[f] += w * r.kv[f];
          }
        }
        for (std::int64_t f = 0; f < width; ++f) y[f] /= sum[static_cast<std::size_t>(f)];
      }
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t m = in.bias.extent[0], width = up.dy.extent[1], wide = in.bias.extent[1];
    p.parallel_for(in.kv.extent[0], 1 + 16384 / (wide + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        if (g.dkv.data) std::fill_n(g.dkv.data + r * g.dkv.stride[0], wide, T(0));
        if (g.dgate.data) std::fill_n(g.dgate.data + r * g.dgate.stride[0], wide, T(0));
      }
    });
    workspace::scope scope(w);
    const auto dbias = g.dbias.data ? w.take<T>(m, wide) : matrix_view<T>();
    if (g.dbias.data) std::fill_n(dbias.data, m * wide, T(0));
    detail::sum_over_rows<T>(
        p, w, up.dy.extent[0], m * wide, dbias.data, [&](std::int64_t first, std::int64_t last, T* partial) {
          const std::int64_t most = in.overlap ? 2 * m : m;
          std::vector<T> weights(static_cast<std::size_t>(most * width)),
              sum(static_cast<std::size_t>(width)), y(sum.size());
          for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t start = (in.first_entry + i) * m,
                               begin = in.overlap && start > 0 ? start - m : start;
            const T* dy = up.dy.data + i * up.dy.stride[0];
            const auto shift = [&](std::int64_t t) { return in.overlap && t >= start ? width : 0; };
            const auto row = [&](const matrix_view<const T>& x, std::int64_t t) {
              return x.data + (t - in.first_position) * x.stride[0] + shift(t);
            };
            // The weights, not yet divided by their sum; top is kept in y.
            std::fill(y.begin(), y.end(), -std::numeric_limits<T>::infinity());
            for (std::int64_t t = begin; t < start + m; ++t) {
              T* logit = weights.data() + (t - begin) * width;
              const T* gate = row(in.gate, t);
              const T* bias = in.bias.data + t % m * in.bias.stride[0] + shift(t);
              for (std::int64_t f = 0; f < width; ++f) {
                logit[f] = gate[f] + bias[f];
                T& top = y[static_cast<std::size_t>(f)];
                top = logit[f] > top ? logit[f] : top;
              }
            }
            std::fill(sum.begin(), sum.end(), T(0));
            for (std::int64_t t = begin; t < start + m; ++t) {
              T* weight = weights.data() + (t - begin) * width;
              for (std::int64_t f = 0; f < width; ++f) {
                weight[f] = std::exp(weight[f] - y[static_cast<std::size_t>(f)]);
                sum[static_cast<std::size_t>(f)] += weight[f];
              }
            }
            std::fill(y.begin(), y.end(), T(0));
            for (T& s : sum) s = T(1) / s;
            for (std::int64_t t = begin; t < start + m; ++t) {
              T* weight = weights.data() + (t - begin) * width;
              const T* kv = row(in.kv, t);
              for (std::int64_t f = 0; f < width; ++f) {
                weight[f] *= sum[static_cast<std::size_t>(f)];
                y[static_cast<std::size_t>(f)] += weight[f] * kv[f];
              }
            }
            for (std::int64_t t = begin; t < start + m; ++t) {
              const T* weight = weights.data() + (t - begin) * width;
              const T* kv = row(in.kv, t);
              const std::int64_t r = t - in.first_position;
              if (g.dkv.data) {
                T* dkv = g.dkv.data + r * g.dkv.stride[0] + shift(t);
                for (std::int64_t f = 0; f < width; ++f) dkv[f] = weight[f] * dy[f];
              }
              T* dgate = g.dgate.data ? g.dgate.data + r * g.dgate.stride[0] + shift(t) : nullptr;
              T* own = partial ? partial + t % m * wide + shift(t) : nullptr;
              for (std::int64_t f = 0; f < width; ++f) {
                const T d = weight[f] * (kv[f] - y[static_cast<std::size_t>(f)]) * dy[f];
                if (dgate) dgate[f] = d;
                if (own) own[f] += d;
              }
            }
          }
        });
    for (std::int64_t r = 0; r < dbias.extent[0]; ++r)
      for (std::int64_t c = 0; c < wide; ++c) g.dbias(r, c) += dbias(r, c);
  }
};

}  // namespace dsv4
