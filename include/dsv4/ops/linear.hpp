// SPDX-License-Identifier: Apache-2.0
/// Matrix products with weights stored [out, in]: plain, per group of channels, and per group of rows. The
/// storage of weights (`W`) and inputs (`X`) may be narrower than the scalar type, or block-scaled; products
/// are of the exact stored values, in the backward pass too: what rounding made of them is passed straight
/// through, so gradients are in the scalar type.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/ops/backward.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

namespace dsv4 {
/// y[t, o] = sum_i x[t, i] weight[o, i]. Rows of x, weight and y may be strided.
/// backward: dx[t, i] = sum_o dy[t, o] weight[o, i],   dweight[o, i] += sum_t dy[t, o] x[t, i].
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
  struct upstream {
    matrix_view<const T, S> dy;  // (N, O)
  };
  struct gradients {
    matrix_view<T, S> dx;       // (N, I)
    matrix_view<T, S> dweight;  // (O, I)
    bool add_to_dx = false;     ///< for an x that has several readers
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("linear", "weight columns", in.weight.extent[1], in.x.extent[1]);
    expect_extent("linear", "y rows", out.y.extent[0], in.x.extent[0]);
    expect_extent("linear", "y columns", out.y.extent[1], in.weight.extent[0]);
    detail::dispatch<linear>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    expect_extent("linear", "weight columns", in.weight.extent[1], in.x.extent[1]);
    expect_extent("linear", "dy rows", up.dy.extent[0], in.x.extent[0]);
    expect_extent("linear", "dy columns", up.dy.extent[1], in.weight.extent[0]);
    detail::expect_gradient("linear", "dx", g.dx, in.x);
    detail::expect_gradient("linear", "dweight", g.dweight, in.weight);
    detail::dispatch_backward<linear>(p, w, in, up, g);
  }
};

/// y[t, g, o] = sum_i x[t, g, i] weight[g, o, i]: every group of channels has its own matrix.
/// backward: that of linear, for each group.
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
  struct upstream {
    tensor_view<const T, S> dy;  // (N, G, O)
  };
  struct gradients {
    tensor_view<T, S> dx;       // (N, G, I)
    tensor_view<T, S> dweight;  // (G, O, I)
  };

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    expect_extent("batched_linear", "weight groups", in.weight.extent[0], in.x.extent[1]);
    expect_extent("batched_linear", "weight columns", in.weight.extent[2], in.x.extent[2]);
    expect_extent("batched_linear", "dy rows", up.dy.extent[0], in.x.extent[0]);
    expect_extent("batched_linear", "dy groups", up.dy.extent[1], in.x.extent[1]);
    expect_extent("batched_linear", "dy columns", up.dy.extent[2], in.weight.extent[1]);
    detail::expect_gradient("batched_linear", "dx", g.dx, in.x);
    detail::expect_gradient("batched_linear", "dweight", g.dweight, in.weight);
    detail::dispatch_backward<batched_linear>(p, w, in, up, g);
  }

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
/// backward: that of linear, for each expert; one without rows keeps its dweight.
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
  struct upstream {
    matrix_view<const T, S> dy;  // (R, O)
  };
  struct gradients {
    matrix_view<T, S> dx;       // (R, I)
    tensor_view<T, S> dweight;  // (E, O, I)
    bool add_to_dx = false;     ///< for an x that has several readers
  };

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    expect_extent("grouped_linear", "offsets", in.offsets.extent[0], in.weight.extent[0] + 1);
    expect_extent("grouped_linear", "weight columns", in.weight.extent[2], in.x.extent[1]);
    expect_extent("grouped_linear", "dy rows", up.dy.extent[0], in.x.extent[0]);
    expect_extent("grouped_linear", "dy columns", up.dy.extent[1], in.weight.extent[1]);
    detail::expect_gradient("grouped_linear", "dx", g.dx, in.x);
    detail::expect_gradient("grouped_linear", "dweight", g.dweight, in.weight);
    detail::dispatch_backward<grouped_linear>(p, w, in, up, g);
  }

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

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dy.extent[0], columns = up.dy.extent[1];
    for (std::int64_t i = 0; i < in.x.extent[1]; ++i) {
      for (std::int64_t t = 0; g.dx.data && t < rows; ++t) {
        double sum = g.add_to_dx ? double(g.dx(t, i)) : 0;
        for (std::int64_t o = 0; o < columns; ++o) sum += double(up.dy(t, o)) * to_double(in.weight(o, i));
        g.dx(t, i) = T(sum);
      }
      for (std::int64_t o = 0; g.dweight.data && o < columns; ++o) {
        double sum = double(g.dweight(o, i));
        for (std::int64_t t = 0; t < rows; ++t) sum += double(up.dy(t, o)) * to_double(in.x(t, i));
        g.dweight(o, i) = T(sum);
      }
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

  static void backward(const auto& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& grad) {
    for (std::int64_t g = 0; g < up.dy.extent[1]; ++g)
      kernel<linear<T, space::host, W>, exec::reference>::backward(
          p, w, {channels(in.x, g), in.weight[g]}, {channels(up.dy, g)},
          {grad.dx.data ? channels(grad.dx, g) : matrix_view<T>(),
           grad.dweight.data ? grad.dweight[g] : matrix_view<T>()});
  }

 private:
  /// x[:, g, :]
  template <class U>
  static matrix_view<U> channels(const tensor_view<U>& x, std::int64_t g) {
    matrix_view<U> m(x.data + g * x.stride[1], x.extent[0], x.extent[2]);
    m.stride[0] = x.stride[0];
    return m;
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

  static void backward(const auto& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    for (std::int64_t e = 0; e < in.weight.extent[0]; ++e) {
      const std::int64_t begin = in.offsets(e), rows = in.offsets(e + 1) - begin;
      if (rows == 0) continue;
      kernel<linear<T, space::host, W, X>, exec::reference>::backward(
          p, w, {in.x.rows(begin, rows), in.weight[e]}, {up.dy.rows(begin, rows)},
          {g.dx.data ? g.dx.rows(begin, rows) : matrix_view<T>(),
           g.dweight.data ? g.dweight[e] : matrix_view<T>(), g.add_to_dx});
    }
  }
};

template <class T, class W, class X>
struct kernel<linear<T, space::host, W, X>, exec::cpu>;  // in ops/cpu/linear.hpp, stored_linear.hpp

template <class T, class W>
struct kernel<batched_linear<T, space::host, W>, exec::cpu>;  // in ops/cpu/linear.hpp, stored_linear.hpp

template <class T, class W, class X>
struct kernel<grouped_linear<T, space::host, W, X>, exec::cpu>;  // in ops/cpu/linear.hpp, stored_linear.hpp

}  // namespace dsv4
