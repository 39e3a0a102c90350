// SPDX-License-Identifier: Apache-2.0
/// Matrix products with weights stored [out, in]: plain, per group of channels, and per group of rows. The
/// storage of weights (`W`) and inputs (`X`) may be narrower than the scalar type, or block-scaled; products
/// are of the exact stored values.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

namespace dsv4 {
/// y[t, o] = sum_i x[t, i] weight[o, i]. Rows of x, weight and y may be strided.
template <class T, space S = space::host, class W = T, class X = T>
struct linear {
  static constexpr space memory = S;
  struct inputs {
    storage_matrix<const X, S> x;       // (N, I)
    storage_matrix<const W, S> weight;  // (O, I)
  };
  struct outputs {
    matrix_view<T, S> y;  // (N, O)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("linear", "weight columns", in.weight.extent[1], in.x.extent[1]);
    expect_extent("linear", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("linear", "y columns", out.y.extent[1], in.weight.extent[0]);
    detail::dispatch<linear>(p, in, out);
  }
};

/// y[t, g, o] = sum_i x[t, g, i] weight[g, o, i]: every group of channels has its own matrix.
template <class T, space S = space::host, class W = T>
struct batched_linear {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> x;         // (N, G, I)
    storage_stack<const W, S> weight;  // (G, O, I)
  };
  struct outputs {
    tensor_view<T, S> y;  // (N, G, O)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("batched_linear", "weight groups", in.weight.extent[0], in.x.extent[1]);
    expect_extent("batched_linear", "weight columns", in.weight.extent[2], in.x.extent[2]);
    expect_extent("batched_linear", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("batched_linear", "y groups", out.y.extent[1], in.x.extent[1]);
    expect_extent("batched_linear", "y columns", out.y.extent[2], in.weight.extent[1]);
    detail::dispatch<batched_linear>(p, in, out);
  }
};

/// y[r, o] = sum_i x[r, i] weight[e, o, i] for the rows r in [offsets[e], offsets[e + 1]) of expert e.
template <class T, space S = space::host, class W = T, class X = T>
struct grouped_linear {
  static constexpr space memory = S;
  struct inputs {
    storage_matrix<const X, S> x;                // (R, I), sorted by expert
    vector_view<const std::int64_t, S> offsets;  // (E + 1)
    storage_stack<const W, S> weight;            // (E, O, I)
  };
  struct outputs {
    matrix_view<T, S> y;  // (R, O)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("grouped_linear", "offsets", in.offsets.extent[0], in.weight.extent[0] + 1);
    expect_extent("grouped_linear", "weight columns", in.weight.extent[2], in.x.extent[1]);
    expect_extent("grouped_linear", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("grouped_linear", "y columns", out.y.extent[1], in.weight.extent[1]);
    detail::dispatch<grouped_linear>(p, in, out);
  }
};

template <class T, class W, class X>
struct kernel<linear<T, space::host, W, X>, exec::reference> {
  using op = linear<T, space::host, W, X>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.y.extent[0]; ++t)
      for (std::int64_t o = 0; o < out.y.extent[1]; ++o) {
        double sum = 0;
        for (std::int64_t i = 0; i < in.x.extent[1]; ++i)
          sum += to_double(in.x(t, i)) * to_double(in.weight(o, i));
        out.y(t, o) = T(sum);
      }
  }
};

template <class T, class W>
struct kernel<batched_linear<T, space::host, W>, exec::reference> {
  using op = batched_linear<T, space::host, W>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t g = 0; g < out.y.extent[1]; ++g) {
      const auto weight = in.weight[g];
      for (std::int64_t t = 0; t < out.y.extent[0]; ++t)
        for (std::int64_t o = 0; o < out.y.extent[2]; ++o) {
          double sum = 0;
          for (std::int64_t i = 0; i < in.x.extent[2]; ++i)
            sum += double(in.x(t, g, i)) * to_double(weight(o, i));
          out.y(t, g, o) = T(sum);
        }
    }
  }
};

template <class T, class W, class X>
struct kernel<grouped_linear<T, space::host, W, X>, exec::reference> {
  using op = grouped_linear<T, space::host, W, X>;
  static void forward(const auto& p, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t e = 0; e < in.weight.extent[0]; ++e) {
      const std::int64_t begin = in.offsets(e), rows = in.offsets(e + 1) - begin;
      if (rows == 0) continue;  // the weights of unused experts need not be there
      kernel<linear<T, space::host, W, X>, exec::reference>::forward(
          p, {in.x.rows(begin, rows), in.weight[e]}, {out.y.rows(begin, rows)});
    }
  }
};

template <class T, class W, class X>
struct kernel<linear<T, space::host, W, X>, exec::cpu>;  // in ops/cpu/linear.hpp

template <class T, class W>
struct kernel<batched_linear<T, space::host, W>, exec::cpu>;  // in ops/cpu/linear.hpp

template <class T, class W, class X>
struct kernel<grouped_linear<T, space::host, W, X>, exec::cpu>;  // in ops/cpu/linear.hpp

}  // namespace dsv4
