// SPDX-License-Identifier: Apache-2.0
/// Copies consecutive rows in and out of rings.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>

namespace dsv4 {

/// destination[(destination_first + i) mod rows(destination)] = source[(source_first + i) mod rows(source)],
/// i < count.
/// backward, dy being the gradient of the destination: dsource takes the copied rows' gradients back to where
/// they came from, and is 0 elsewhere.
template <class T, space S = space::host>
struct copy_rows {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> source;  // (R, D)
    std::int64_t source_first;
    std::int64_t destination_first;
    std::int64_t count;
  };
  struct outputs {
    matrix_view<T, S> destination;  // (R', D)
  };
  struct upstream {
    matrix_view<const T, S> dy;  // (R', D)
  };
  struct gradients {
    matrix_view<T, S> dsource;  // (R, D)
  };

  // Out of line: blocks call it in many places.
  template <policy P>
  [[gnu::noinline]] static void forward(const P& p, const inputs& in, const outputs& out) {
    if (in.count == 0) return;
    expect_extent("copy_rows", "destination width", out.destination.extent[1], in.source.extent[1]);
    expect(in.count <= in.source.extent[0] && in.count <= out.destination.extent[0], "copy_rows", "count",
           "at most the rows of either side", in.count);
    detail::dispatch<copy_rows>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    if (!g.dsource.data) return;
    detail::expect_gradient("copy_rows", "dsource", g.dsource, in.source);
    expect_extent("copy_rows", "dy width", up.dy.extent[1], in.source.extent[1]);
    expect(in.count <= in.source.extent[0] && in.count <= up.dy.extent[0], "copy_rows", "count",
           "at most the rows of either side", in.count);
    detail::dispatch_backward<copy_rows>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<copy_rows<T>, exec::reference> {
  using op = copy_rows<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t i = 0; i < in.count; ++i) {
      const auto from = in.source[(in.source_first + i) % in.source.extent[0]];
      const auto to = out.destination[(in.destination_first + i) % out.destination.extent[0]];
      std::copy(from.data, from.data + from.extent[0], to.data);
    }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t i = 0; i < g.dsource.extent[0]; ++i)
      std::fill_n(g.dsource[i].data, g.dsource.extent[1], T(0));
    for (std::int64_t i = 0; i < in.count; ++i) {
      const auto from = up.dy[(in.destination_first + i) % up.dy.extent[0]];
      std::copy(from.data, from.data + from.extent[0],
                g.dsource[(in.source_first + i) % g.dsource.extent[0]].data);
    }
  }
};

/// A copy: nothing to win over the reference.
template <class T>
struct kernel<copy_rows<T>, exec::cpu> : kernel<copy_rows<T>, exec::reference> {};

}  // namespace dsv4
