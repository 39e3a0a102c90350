// SPDX-License-Identifier: Apache-2.0
/// Orthonormal Walsh-Hadamard transform.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <bit>
#include <cmath>
#include <vector>

namespace dsv4 {
/// In place on every row: x <- H x / sqrt(D), H in natural (Sylvester) order, D a power of two.
/// Symmetric and orthonormal: its own inverse and its own adjoint: backward, dx = H dy / sqrt(D). dx may be
/// dy. Used on the indexer's queries and keys.
template <class T, space S = space::host>
struct hadamard {
  static constexpr space memory = S;
  struct inputs {};
  struct outputs {
    matrix_view<T, S> x;  // (N, D), read and written
  };
  struct upstream {
    matrix_view<const T, S> dy;  // (N, D)
  };
  struct gradients {
    matrix_view<T, S> dx;  // (N, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    const std::int64_t width = out.x.extent[1];
    expect(width > 0 && (width & (width - 1)) == 0, "hadamard", "x width", "a power of two", width);
    detail::dispatch<hadamard>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    const std::int64_t width = up.dy.extent[1];
    expect(width > 0 && (width & (width - 1)) == 0, "hadamard", "dy width", "a power of two", width);
    detail::expect_gradient("hadamard", "dx", g.dx, up.dy);
    if (g.dx.data) detail::dispatch_backward<hadamard>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<hadamard<T>, exec::reference> {
  using op = hadamard<T>;
  static void forward(const auto&, const typename op::inputs&, const typename op::outputs& out) {
    const std::int64_t width = out.x.extent[1];
    std::vector<double> y(static_cast<std::size_t>(width));
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t) {
      for (std::int64_t i = 0; i < width; ++i) {
        double sum = 0;
        for (std::int64_t j = 0; j < width; ++j)
          sum += std::popcount(static_cast<std::uint64_t>(i & j)) % 2 ? -double(out.x(t, j))
                                                                      : double(out.x(t, j));
        y[static_cast<std::size_t>(i)] = sum / std::sqrt(double(width));
      }
      for (std::int64_t i = 0; i < width; ++i) out.x(t, i) = T(y[static_cast<std::size_t>(i)]);
    }
  }

  static void backward(const auto& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t t = 0; t < g.dx.extent[0]; ++t)
      for (std::int64_t i = 0; i < g.dx.extent[1]; ++i) g.dx(t, i) = up.dy(t, i);
    forward(p, in, {g.dx});
  }
};

template <class T>
struct kernel<hadamard<T>, exec::cpu>;  // in ops/cpu/hadamard.hpp

}  // namespace dsv4
