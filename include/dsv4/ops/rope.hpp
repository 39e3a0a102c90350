// SPDX-License-Identifier: Apache-2.0
/// Rotary position embedding of adjacent channel pairs, YaRN frequencies, and the inverse rotation.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dsv4 {
/// Angular frequencies of the rotated pairs, in radians per position.
struct rope_frequencies {
  double value[64] = {};
  int pairs = 0;
};

/// value[i] = theta^(-2i/dim), slowed by `yarn_factor` where the wavelength is long compared with
/// `original_max_position_embeddings` (docs/blocks/attention.md). Factor 1 leaves them as they are.
inline rope_frequencies make_rope_frequencies(int dim, double theta, const rope_config& yarn) {
  rope_frequencies f;
  f.pairs = dim / 2;
  const auto turns_at = [&](double turns) {
    return dim * std::log(yarn.original_max_position_embeddings / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  const double low = std::max(0.0, std::floor(turns_at(yarn.beta_fast)));
  double high = std::min(double(dim - 1), std::ceil(turns_at(yarn.beta_slow)));
  if (low == high) high += 0.001;
  for (int i = 0; i < f.pairs; ++i) {
    const double plain = std::pow(theta, -2.0 * i / dim);
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    f.value[i] = plain * (1 - ramp) + plain / yarn.yarn_factor * ramp;
  }
  return f;
}

/// The table of a layer: sliding layers (and MTP) turn with rope_theta alone, the others with
/// compress_rope_theta and YaRN, for queries, window keys, compressed entries and the indexer alike.
inline rope_frequencies layer_rope_frequencies(const attention_config& a, attention_kind kind) {
  rope_config plain = a.rope;
  plain.yarn_factor = 1;
  return kind == attention_kind::sliding
             ? make_rope_frequencies(a.qk_rope_head_dim, a.rope.rope_theta, plain)
             : make_rope_frequencies(a.qk_rope_head_dim, a.rope.compress_rope_theta, a.rope);
}

/// In place on the last 2 * pairs channels of every head: (x[2i], x[2i+1]) turns by position * frequency[i],
/// position = first_position + row * position_step; backwards when `inverse`. The inverse is also the
/// adjoint: backward, dx is dy turned the other way. dx may be dy.
template <class T, space S = space::host>
struct rope {
  static constexpr space memory = S;
  struct inputs {
    rope_frequencies frequencies;
    std::int64_t first_position;
    std::int64_t position_step = 1;
    bool inverse = false;
  };
  struct outputs {
    tensor_view<T, S> x;  // (N, H, D), read and written
  };
  struct upstream {
    tensor_view<const T, S> dy;  // (N, H, D)
  };
  struct gradients {
    tensor_view<T, S> dx;  // (N, H, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect(2 * in.frequencies.pairs <= out.x.extent[2], "rope", "x width",
           numbered{"at least ", 2 * in.frequencies.pairs}, out.x.extent[2]);
    detail::dispatch<rope>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    expect(2 * in.frequencies.pairs <= up.dy.extent[2], "rope", "dy width",
           numbered{"at least ", 2 * in.frequencies.pairs}, up.dy.extent[2]);
    detail::expect_gradient("rope", "dx", g.dx, up.dy);
    if (g.dx.data) detail::dispatch_backward<rope>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<rope<T>, exec::reference> {
  using op = rope<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t skip = out.x.extent[2] - 2 * in.frequencies.pairs;
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t)
      for (std::int64_t h = 0; h < out.x.extent[1]; ++h)
        for (int i = 0; i < in.frequencies.pairs; ++i) {
          const double angle = double(in.first_position + t * in.position_step) * in.frequencies.value[i];
          const double c = std::cos(angle), s = in.inverse ? -std::sin(angle) : std::sin(angle);
          T &even = out.x(t, h, skip + 2 * i), &odd = out.x(t, h, skip + 2 * i + 1);
          const double e = double(even), o = double(odd);
          even = T(e * c - o * s);
          odd = T(e * s + o * c);
        }
  }

  static void backward(const auto& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t t = 0; t < g.dx.extent[0]; ++t)
      for (std::int64_t h = 0; h < g.dx.extent[1]; ++h)
        for (std::int64_t c = 0; c < g.dx.extent[2]; ++c) g.dx(t, h, c) = up.dy(t, h, c);
    auto back = in;
    back.inverse = !in.inverse;
    forward(p, back, {g.dx});
  }
};

template <class T>
struct kernel<rope<T>, exec::cpu>;  // in ops/cpu/rope.hpp

}  // namespace dsv4
