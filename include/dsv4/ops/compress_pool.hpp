// SPDX-License-Identifier: Apache-2.0
/// Gated pooling of groups of tokens into one entry: the heart of the KV compressor.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dsv4 {
/// Entry i pools the tokens of group i, and with `overlap` also those of group i - 1, by a softmax over
/// tokens taken separately for every channel (docs/blocks/kv-compressor.md):
///   without overlap   y_i[f] = sum_t softmax_t(gate_t[f] + bias[t mod m, f]) kv_t[f],   t in group i
///   with overlap      the projections are 2D wide; group i - 1 enters with its first D channels, group i
///   with its
///                     last D; the softmax runs over all 2m tokens. Entry 0 has no previous group.
/// Row r of kv and gate is the token at position first_position + r. Each entry's tokens must be among the
/// rows.
/// backward, with the softmax weight w of a token in the entry that pools this channel of it:
///   dkv = w dy,   dgate = w (kv - y) dy,   dbias[t mod m] += dgate[t];
/// channels of tokens that no entry here pools get 0.
template <class T, space S = space::host>
struct compress_pool {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> kv;    // (R, D) or with overlap (R, 2D)
    matrix_view<const T, S> gate;  // like kv
    matrix_view<const T, S> bias;  // (m, D) or (m, 2D)
    std::int64_t first_position;
    std::int64_t first_entry;
    bool overlap;
  };
  struct outputs {
    matrix_view<T, S> y;  // (entries, D)
  };
  struct upstream {
    matrix_view<const T, S> dy;  // (entries, D)
  };
  struct gradients {
    matrix_view<T, S> dkv;    // like kv
    matrix_view<T, S> dgate;  // like gate
    matrix_view<T, S> dbias;  // like bias
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    check(in, out.y.extent[0], out.y.extent[1]);
    detail::dispatch<compress_pool>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    check(in, up.dy.extent[0], up.dy.extent[1]);
    detail::expect_gradient("compress_pool", "dkv", g.dkv, in.kv);
    detail::expect_gradient("compress_pool", "dgate", g.dgate, in.gate);
    detail::expect_gradient("compress_pool", "dbias", g.dbias, in.bias);
    detail::dispatch_backward<compress_pool>(p, w, in, up, g);
  }

 private:
  static void check(const inputs& in, std::int64_t entries, std::int64_t channels) {
    const std::int64_t m = in.bias.extent[0], width = channels * (in.overlap ? 2 : 1);
    expect_extent("compress_pool", "kv width", in.kv.extent[1], width);
    expect_extent("compress_pool", "gate width", in.gate.extent[1], width);
    expect_extent("compress_pool", "gate rows", in.gate.extent[0], in.kv.extent[0]);
    expect_extent("compress_pool", "bias width", in.bias.extent[1], width);
    if (entries > 0) {
      const std::int64_t oldest = std::max<std::int64_t>(0, in.first_entry - (in.overlap ? 1 : 0)) * m;
      expect(in.first_position <= oldest, "compress_pool", "first_position", numbered{"at most ", oldest},
             in.first_position);
      expect(in.first_position + in.kv.extent[0] >= (in.first_entry + entries) * m, "compress_pool",
             "kv rows", "every token of the entries", in.kv.extent[0]);
    }
  }
};

template <class T>
struct kernel<compress_pool<T>, exec::reference> {
  using op = compress_pool<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t m = in.bias.extent[0], width = out.y.extent[1];
    for (std::int64_t i = 0; i < out.y.extent[0]; ++i)
      for (std::int64_t f = 0; f < width; ++f) {
        const std::int64_t start = (in.first_entry + i) * m;  // position of the group's first token
        const std::int64_t begin = in.overlap && start > 0 ? start - m : start;
        const auto channel = [&](std::int64_t t) { return in.overlap && t >= start ? width + f : f; };
        const auto logit = [&](std::int64_t t) {
          return double(in.gate(t - in.first_position, channel(t))) + double(in.bias(t % m, channel(t)));
        };
        double top = -std::numeric_limits<double>::infinity(), sum = 0, value = 0;
        for (std::int64_t t = begin; t < start + m; ++t) top = std::max(top, logit(t));
        for (std::int64_t t = begin; t < start + m; ++t) {
          const double w = std::exp(logit(t) - top);
          sum += w;
          value += w * double(in.kv(t - in.first_position, channel(t)));
        }
        out.y(i, f) = T(value / sum);
      }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t m = in.bias.extent[0], width = up.dy.extent[1], wide = in.bias.extent[1];
    const matrix_view<T> cleared[] = {g.dkv, g.dgate};  // nvcc cannot loop over a braced list here
    for (const auto& d : cleared)
      for (std::int64_t r = 0; r < d.extent[0]; ++r)
        for (std::int64_t c = 0; c < d.extent[1]; ++c) d(r, c) = T(0);
    std::vector<double> dbias(static_cast<std::size_t>(m * wide), 0.0);
    for (std::int64_t i = 0; i < up.dy.extent[0]; ++i)
      for (std::int64_t f = 0; f < width; ++f) {
        const std::int64_t start = (in.first_entry + i) * m;
        const std::int64_t begin = in.overlap && start > 0 ? start - m : start;
        const auto channel = [&](std::int64_t t) { return in.overlap && t >= start ? width + f : f; };
        const auto kv = [&](std::int64_t t) { return double(in.kv(t - in.first_position, channel(t))); };
        const auto logit = [&](std::int64_t t) {
          return double(in.gate(t - in.first_position, channel(t))) + double(in.bias(t % m, channel(t)));
        };
        double top = -std::numeric_limits<double>::infinity(), sum = 0, y = 0;
        for (std::int64_t t = begin; t < start + m; ++t) top = std::max(top, logit(t));
        for (std::int64_t t = begin; t < start + m; ++t) sum += std::exp(logit(t) - top);
        for (std::int64_t t = begin; t < start + m; ++t) y += std::exp(logit(t) - top) / sum * kv(t);
        for (std::int64_t t = begin; t < start + m; ++t) {
          const double w = std::exp(logit(t) - top) / sum, dy = double(up.dy(i, f));
          const double dgate = w * (kv(t) - y) * dy;
          if (g.dkv.data) g.dkv(t - in.first_position, channel(t)) = T(w * dy);
          if (g.dgate.data) g.dgate(t - in.first_position, channel(t)) = T(dgate);
          dbias[static_cast<std::size_t>(t % m * wide + channel(t))] += dgate;
        }
      }
    if (g.dbias.data)
      for (std::int64_t r = 0; r < m; ++r)
        for (std::int64_t c = 0; c < wide; ++c)
          g.dbias(r, c) = T(double(g.dbias(r, c)) + dbias[static_cast<std::size_t>(r * wide + c)]);
  }
};

template <class T>
struct kernel<compress_pool<T>, exec::cpu>;  // in ops/cpu/compress_pool.hpp

}  // namespace dsv4
