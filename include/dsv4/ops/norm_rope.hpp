// SPDX-License-Identifier: Apache-2.0
/// Normalisation and rotation of heads: a row of other ops, which a policy may have a kernel of its own for.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/ops/rms_norm.hpp>
#include <dsv4/ops/rope.hpp>

#include <cstdint>

namespace dsv4 {

/// y = every head of x normalised and rotated: `rms_norm`, then `rope`. y may be x. Forward only: backward is
/// that of these ops.
template <class T, space S = space::host>
struct norm_rope {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    tensor_view<const T, S> x;       // (N, H, D), dense
    vector_view<const T, S> weight;  // (D) or empty
    double eps;
    rope_frequencies frequencies;
    std::int64_t first_position;
    std::int64_t position_step = 1;
  };
  struct outputs {
    tensor_view<T, S> y;  // (N, H, D), dense
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    for (int axis = 0; axis < 3; ++axis)
      expect_extent("norm_rope", "y extent", out.y.extent[axis], in.x.extent[axis]);
    if (in.weight.data) expect_extent("norm_rope", "weight", in.weight.extent[0], in.x.extent[2]);
    detail::dispatch_composed<norm_rope>(p, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, const inputs& in, const outputs& out) {
    const std::int64_t rows = in.x.extent[0] * in.x.extent[1], width = in.x.extent[2];
    rms_norm<T, S>::forward(p, {in.x.reshape(rows, width), in.weight, in.eps}, {out.y.reshape(rows, width)});
    rope<T, S>::forward(p, {in.frequencies, in.first_position, in.position_step}, {out.y});
  }
};

}  // namespace dsv4
