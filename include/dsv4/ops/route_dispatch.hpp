// SPDX-License-Identifier: Apache-2.0
/// Choosing experts and sending rows to them: two ops in a row, which a policy may have a kernel of its own
/// for.
#pragma once

#include <dsv4/ops/expert_dispatch.hpp>
#include <dsv4/ops/route.hpp>

namespace dsv4 {

/// `route`, then `expert_dispatch` of x by what it chose. Forward only: backward is that of these ops.
template <class T, space S = space::host>
struct route_dispatch {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    typename route<T, S>::inputs choice;
    matrix_view<const T, S> x;  // (N, D)
  };
  struct outputs {
    typename route<T, S>::outputs chosen;
    typename expert_dispatch<T, S>::outputs rows;
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    const std::int64_t pairs = out.chosen.experts.extent[0] * out.chosen.experts.extent[1];
    expect_extent("route_dispatch", "x rows", in.x.extent[0], in.choice.logits.extent[0]);
    expect_extent("route_dispatch", "experts rows", out.chosen.experts.extent[0], in.x.extent[0]);
    expect_extent("route_dispatch", "weights rows", out.chosen.weights.extent[0], in.x.extent[0]);
    expect_extent("route_dispatch", "weights width", out.chosen.weights.extent[1],
                  out.chosen.experts.extent[1]);
    expect_extent("route_dispatch", "offsets", out.rows.offsets.extent[0], in.choice.logits.extent[1] + 1);
    expect_extent("route_dispatch", "order", out.rows.order.extent[0], pairs);
    expect_extent("route_dispatch", "x_sorted rows", out.rows.x_sorted.extent[0], pairs);
    expect_extent("route_dispatch", "x_sorted width", out.rows.x_sorted.extent[1], in.x.extent[1]);
    expect_extent("route_dispatch", "weight_sorted", out.rows.weight_sorted.extent[0], pairs);
    if (in.choice.table.data) {
      expect_extent("route_dispatch", "table width", in.choice.table.extent[1], out.chosen.experts.extent[1]);
      expect_extent("route_dispatch", "tokens", in.choice.tokens.extent[0], in.x.extent[0]);
    } else {
      expect_extent("route_dispatch", "bias", in.choice.bias.extent[0], in.choice.logits.extent[1]);
    }
    detail::dispatch_composed<route_dispatch>(p, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, const inputs& in, const outputs& out) {
    route<T, S>::forward(p, in.choice, out.chosen);
    expert_dispatch<T, S>::forward(p, {in.x, out.chosen.experts, out.chosen.weights}, out.rows);
  }
};

}  // namespace dsv4
