// SPDX-License-Identifier: Apache-2.0
/// Matrix products of inputs that are rounded to an activation format first, alone, in pairs, and as an
/// expert's gate: rows of other ops, which a policy may have kernels of its own for.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/activation.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/swiglu.hpp>

#include <cstdint>

namespace dsv4 {

/// y = x weight^T: `quantise` x to `X` unless that is T itself, then `linear`. Forward only, as all ops here:
/// backward is that of these ops.
template <class T, space S = space::host, class W = T, class X = T>
struct activation_linear {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    matrix_view<const T, S> x;          // (N, I)
    storage_matrix<const W, S> weight;  // (O, I)
  };
  struct outputs {
    matrix_view<T, S> y;  // (N, O)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("activation_linear", "weight columns", in.weight.extent[1], in.x.extent[1]);
    expect_extent("activation_linear", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("activation_linear", "y columns", out.y.extent[1], in.weight.extent[0]);
    detail::dispatch_composed<activation_linear>(p, w, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const workspace_scope scope(w);
    linear<T, S, W, X>::forward(p, {as_activation<X>(p, w, in.x), in.weight}, {out.y});
  }
};

/// first = x weight^T and second = x other^T, as `activation_linear`.
template <class T, space S = space::host, class W = T, class X = T>
struct activation_linear_pair {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    matrix_view<const T, S> x;                 // (N, I)
    storage_matrix<const W, S> weight, other;  // (O, I), (P, I)
  };
  struct outputs {
    matrix_view<T, S> first, second;  // (N, O), (N, P)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("activation_linear_pair", "weight columns", in.weight.extent[1], in.x.extent[1]);
    expect_extent("activation_linear_pair", "other columns", in.other.extent[1], in.x.extent[1]);
    expect_extent("activation_linear_pair", "first rows", out.first.extent[0], in.x.extent[0]);
    expect_extent("activation_linear_pair", "first columns", out.first.extent[1], in.weight.extent[0]);
    expect_extent("activation_linear_pair", "second rows", out.second.extent[0], in.x.extent[0]);
    expect_extent("activation_linear_pair", "second columns", out.second.extent[1], in.other.extent[0]);
    detail::dispatch_composed<activation_linear_pair>(p, w, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const workspace_scope scope(w);
    const auto x = as_activation<X>(p, w, in.x);
    linear<T, S, W, X>::forward(p, {x, in.weight}, {out.first});
    linear<T, S, W, X>::forward(p, {x, in.other}, {out.second});
  }
};

/// h = swiglu(x gate^T, x up^T), as `activation_linear`, twice, and `swiglu`.
template <class T, space S = space::host, class W = T, class X = T>
struct gated_linear {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    matrix_view<const T, S> x;            // (N, D)
    storage_matrix<const W, S> gate, up;  // (I, D)
    double limit;
  };
  struct outputs {
    matrix_view<T, S> h;  // (N, I)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("gated_linear", "h rows", out.h.extent[0], in.x.extent[0]);
    expect_extent("gated_linear", "gate rows", in.gate.extent[0], out.h.extent[1]);
    expect_extent("gated_linear", "gate columns", in.gate.extent[1], in.x.extent[1]);
    expect_extent("gated_linear", "up rows", in.up.extent[0], out.h.extent[1]);
    expect_extent("gated_linear", "up columns", in.up.extent[1], in.x.extent[1]);
    detail::dispatch_composed<gated_linear>(p, w, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const workspace_scope scope(w);
    const auto up = take<T>(w, out.h.extent[0], out.h.extent[1]);
    activation_linear_pair<T, S, W, X>::by_ops(p, w, {in.x, in.gate, in.up}, {out.h, up});
    swiglu<T, S>::forward(p, {out.h, up, {}, in.limit}, {out.h});
  }
};

/// y = x weight^T for the rows of each expert: `quantise` as above, `grouped_linear`.
template <class T, space S = space::host, class W = T, class X = T>
struct grouped_activation_linear {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    matrix_view<const T, S> x;                   // (R, I), sorted by expert
    vector_view<const std::int64_t, S> offsets;  // (E + 1)
    storage_stack<const W, S> weight;            // (E, O, I)
  };
  struct outputs {
    matrix_view<T, S> y;  // (R, O)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("grouped_activation_linear", "offsets", in.offsets.extent[0], in.weight.extent[0] + 1);
    expect_extent("grouped_activation_linear", "weight columns", in.weight.extent[2], in.x.extent[1]);
    expect_extent("grouped_activation_linear", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("grouped_activation_linear", "y columns", out.y.extent[1], in.weight.extent[1]);
    detail::dispatch_composed<grouped_activation_linear>(p, w, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const workspace_scope scope(w);
    grouped_linear<T, S, W, X>::forward(p, {as_activation<X>(p, w, in.x), in.offsets, in.weight}, {out.y});
  }
};

/// h = swiglu(x gate^T, x up^T) times the row's weight, for the rows of each expert: `quantise` as above,
/// `grouped_linear`, twice, and `swiglu`.
template <class T, space S = space::host, class W = T, class X = T>
struct grouped_gated_linear {
  static constexpr space memory = S;
  static constexpr bool composed = true;
  struct inputs {
    matrix_view<const T, S> x;                   // (R, D), sorted by expert
    vector_view<const std::int64_t, S> offsets;  // (E + 1)
    storage_stack<const W, S> gate, up;          // (E, I, D)
    vector_view<const T, S> row_weight;          // (R), may be empty
    double limit;
  };
  struct outputs {
    matrix_view<T, S> h;  // (R, I)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("grouped_gated_linear", "offsets", in.offsets.extent[0], in.gate.extent[0] + 1);
    expect_extent("grouped_gated_linear", "h rows", out.h.extent[0], in.x.extent[0]);
    expect_extent("grouped_gated_linear", "gate rows", in.gate.extent[1], out.h.extent[1]);
    expect_extent("grouped_gated_linear", "gate columns", in.gate.extent[2], in.x.extent[1]);
    expect_extent("grouped_gated_linear", "up matrices", in.up.extent[0], in.gate.extent[0]);
    expect_extent("grouped_gated_linear", "up rows", in.up.extent[1], out.h.extent[1]);
    expect_extent("grouped_gated_linear", "up columns", in.up.extent[2], in.x.extent[1]);
    if (in.row_weight.data)
      expect_extent("grouped_gated_linear", "row_weight", in.row_weight.extent[0], in.x.extent[0]);
    detail::dispatch_composed<grouped_gated_linear>(p, w, in, out);
  }

  /// The ops themselves.
  template <policy P>
  static void by_ops(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const workspace_scope scope(w);
    const auto up = take<T>(w, out.h.extent[0], out.h.extent[1]);
    const auto x = as_activation<X>(p, w, in.x);
    grouped_linear<T, S, W, X>::forward(p, {x, in.offsets, in.gate}, {out.h});
    grouped_linear<T, S, W, X>::forward(p, {x, in.offsets, in.up}, {up});
    swiglu<T, S>::forward(p, {out.h, up, in.row_weight, in.limit}, {out.h});
  }
};

}  // namespace dsv4
