// SPDX-License-Identifier: Apache-2.0
/// Sends token rows to their experts and brings the results back.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

namespace dsv4 {
/// Sorts the N k (token, slot) pairs by expert, stably: row r of `x_sorted` is the token of pair order[r] = t
/// k + j. offsets[e] is the first row of expert e.
template <class T, space S = space::host>
struct expert_dispatch {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> x;                   // (N, D)
    matrix_view<const std::int32_t, S> experts;  // (N, k)
    matrix_view<const T, S> weights;             // (N, k)
  };
  struct outputs {
    vector_view<std::int64_t, S> offsets;  // (E + 1)
    vector_view<std::int64_t, S> order;    // (N k)
    matrix_view<T, S> x_sorted;            // (N k, D)
    vector_view<T, S> weight_sorted;       // (N k)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    const std::int64_t pairs = in.experts.extent[0] * in.experts.extent[1];
    expect_extent("expert_dispatch", "order", out.order.extent[0], pairs);
    expect_extent("expert_dispatch", "x_sorted rows", out.x_sorted.extent[0], pairs);
    expect_extent("expert_dispatch", "weight_sorted", out.weight_sorted.extent[0], pairs);
    detail::dispatch<expert_dispatch>(p, in, out);
  }
};

/// out[t, :] = shared[t, :] + sum_j y[row of pair (t, j), :], slots in ascending order. out may be shared.
template <class T, space S = space::host>
struct expert_combine {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> y;                 // (N k, D), sorted by expert
    vector_view<const std::int64_t, S> order;  // (N k)
    matrix_view<const T, S> shared;            // (N, D)
  };
  struct outputs {
    matrix_view<T, S> out;                 // (N, D)
    vector_view<std::int64_t, S> inverse;  // (N k), scratch: row of each pair
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("expert_combine", "order", in.order.extent[0], in.y.extent[0]);
    expect_extent("expert_combine", "inverse", out.inverse.extent[0], in.y.extent[0]);
    expect_extent("expert_combine", "out rows", out.out.extent[0], in.shared.extent[0]);
    expect_extent("expert_combine", "out width", out.out.extent[1], in.y.extent[1]);
    detail::dispatch<expert_combine>(p, in, out);
  }
};

template <class T>
struct kernel<expert_dispatch<T>, exec::reference> {
  using op = expert_dispatch<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t k = in.experts.extent[1], pairs = out.order.extent[0];
    std::int64_t row = 0;
    for (std::int64_t e = 0; e + 1 < out.offsets.extent[0]; ++e) {
      out.offsets(e) = row;
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        if (in.experts(pair / k, pair % k) != e) continue;
        out.order(row) = pair;
        out.weight_sorted(row) = in.weights(pair / k, pair % k);
        for (std::int64_t c = 0; c < in.x.extent[1]; ++c) out.x_sorted(row, c) = in.x(pair / k, c);
        ++row;
      }
    }
    out.offsets(out.offsets.extent[0] - 1) = row;
  }
};

template <class T>
struct kernel<expert_combine<T>, exec::reference> {
  using op = expert_combine<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = out.out.extent[0], k = rows ? in.order.extent[0] / rows : 0;
    for (std::int64_t r = 0; r < in.order.extent[0]; ++r) out.inverse(in.order(r)) = r;
    for (std::int64_t t = 0; t < rows; ++t)
      for (std::int64_t c = 0; c < out.out.extent[1]; ++c) {
        double sum = double(in.shared(t, c));
        for (std::int64_t j = 0; j < k; ++j) sum += double(in.y(out.inverse(t * k + j), c));
        out.out(t, c) = T(sum);
      }
  }
};

template <class T>
struct kernel<expert_dispatch<T>, exec::cpu>;  // in ops/cpu/expert_dispatch.hpp

template <class T>
struct kernel<expert_combine<T>, exec::cpu>;  // in ops/cpu/expert_dispatch.hpp

}  // namespace dsv4
