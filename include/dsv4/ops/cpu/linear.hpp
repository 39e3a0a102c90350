// SPDX-License-Identifier: Apache-2.0
/// Matrix products on host threads, with weights of the scalar's own type; see gemm.hpp for what holds of
/// their rounding. Those with narrow weights are in stored_linear.hpp.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/linear.hpp>

#include <cstdint>
#include <type_traits>

namespace dsv4 {
namespace detail {

/// One product of a backward pass: y[rows, o] = x[rows, k] weight[o, k]^T.
template <class T>
struct linear_gradient {
  std::int64_t rows;
  const T* dy;
  std::int64_t lddy;
  const T* x;
  std::int64_t ldx;
  T* dx;
  std::int64_t lddx;
  T* dweight;
  std::int64_t lddw;
};

/// A narrow weight as T, in the workspace: in stored_linear.hpp.
template <class T, class W>
matrix_view<const T> widened_weight(const exec::cpu& p, workspace& w, const storage_matrix<const W>& weight);

/// `weight` as T: itself, or widened_weight.
template <class T, class W>
matrix_view<const T> decoded([[maybe_unused]] const exec::cpu& p, [[maybe_unused]] workspace& w,
                             const storage_matrix<const W>& weight) {
  if constexpr (std::is_same_v<T, W>)
    return weight;
  else
    return widened_weight<T, W>(p, w, weight);
}

/// The gradients of `count` products, gradient(i) and weight(i) describing each, that share o and k. Null
/// pointers are skipped, in all products alike.
template <class T, class W, class Gradient, class Weight>
void linear_backward(const exec::cpu& p, workspace& w, std::int64_t count, std::int64_t o, std::int64_t k,
                     bool add_to_dx, const Gradient& gradient, const Weight& weight) {
  if (count == 0) return;
  if (gradient(0).dx) {
    const auto product = [&](std::int64_t i, const matrix_view<const T>& m) {
      const linear_gradient<T> g = gradient(i);
      return outer_problem<T>{g.dy, g.lddy, g.rows, o, m.data, m.stride[0], g.dx, g.lddx};
    };
    if constexpr (std::is_same_v<T, W>) {
      gemm_outer<false, T>(p, count, k, add_to_dx, [&](std::int64_t i) { return product(i, weight(i)); });
    } else {
      for (std::int64_t i = 0; i < count; ++i) {  // one decoded matrix at a time
        if (gradient(i).rows == 0) continue;
        workspace::scope scope(w);
        const auto m = decoded<T, W>(p, w, weight(i));
        gemm_outer<false, T>(p, 1, k, add_to_dx, [&](std::int64_t) { return product(i, m); });
      }
    }
  }
  if (gradient(0).dweight)
    gemm_outer<true, T>(p, count, k, true, [&](std::int64_t i) {
      const linear_gradient<T> g = gradient(i);
      return outer_problem<T>{g.dy, g.lddy, o, g.rows, g.x, g.ldx, g.dweight, g.lddw};
    });
}

template <class T, class W, class X>
void backward_of_linear(const exec::cpu& p, workspace& w,
                        const typename linear<T, space::host, W, X>::inputs& in,
                        const typename linear<T, space::host, W, X>::upstream& up,
                        const typename linear<T, space::host, W, X>::gradients& g) {
  workspace::scope scope(w);
  const auto x = g.dweight.data ? decoded<T, X>(p, w, in.x) : matrix_view<const T>();
  linear_backward<T, W>(
      p, w, 1, up.dy.extent[1], in.x.extent[1], g.add_to_dx,
      [&](std::int64_t) {
        return linear_gradient<T>{up.dy.extent[0], up.dy.data,     up.dy.stride[0],
                                  x.data,          x.stride[0],    g.dx.data,
                                  g.dx.stride[0],  g.dweight.data, g.dweight.stride[0]};
      },
      [&](std::int64_t) { return in.weight; });
}

template <class T, class W>
void backward_of_batched_linear(const exec::cpu& p, workspace& w,
                                const typename batched_linear<T, space::host, W>::inputs& in,
                                const typename batched_linear<T, space::host, W>::upstream& up,
                                const typename batched_linear<T, space::host, W>::gradients& g) {
  linear_backward<T, W>(
      p, w, up.dy.extent[1], up.dy.extent[2], in.x.extent[2], false,
      [&](std::int64_t i) {
        return linear_gradient<T>{
            up.dy.extent[0],    up.dy.data + i * up.dy.stride[1],
            up.dy.stride[0],    in.x.data + i * in.x.stride[1],
            in.x.stride[0],     g.dx.data ? g.dx.data + i * g.dx.stride[1] : nullptr,
            g.dx.stride[0],     g.dweight.data ? g.dweight.data + i * g.dweight.stride[0] : nullptr,
            g.dweight.stride[1]};
      },
      [&](std::int64_t i) { return in.weight[i]; });
}

template <class T, class W, class X>
void backward_of_grouped_linear(const exec::cpu& p, workspace& w,
                                const typename grouped_linear<T, space::host, W, X>::inputs& in,
                                const typename grouped_linear<T, space::host, W, X>::upstream& up,
                                const typename grouped_linear<T, space::host, W, X>::gradients& g) {
  workspace::scope scope(w);
  const auto x = g.dweight.data ? decoded<T, X>(p, w, in.x) : matrix_view<const T>();
  linear_backward<T, W>(
      p, w, in.weight.extent[0], up.dy.extent[1], in.x.extent[1], g.add_to_dx,
      [&](std::int64_t e) {
        const std::int64_t begin = in.offsets(e);
        return linear_gradient<T>{in.offsets(e + 1) - begin,
                                  up.dy.data + begin * up.dy.stride[0],
                                  up.dy.stride[0],
                                  x.data + begin * x.stride[0],
                                  x.stride[0],
                                  g.dx.data ? g.dx.data + begin * g.dx.stride[0] : nullptr,
                                  g.dx.stride[0],
                                  g.dweight.data ? g.dweight.data + e * g.dweight.stride[0] : nullptr,
                                  g.dweight.stride[1]};
      },
      [&](std::int64_t e) { return in.weight[e]; });
}

}  // namespace detail

template <class T>
struct kernel<linear<T>, exec::cpu> {
  using op = linear<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::gemm_nt<T>(p, 1, out.y.extent[1], in.x.extent[1], [&](std::int64_t) {
      return detail::dense_problem<T>{in.x.data,           in.x.stride[0], in.x.extent[0], in.weight.data,
                                      in.weight.stride[0], out.y.data,     out.y.stride[0]};
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::backward_of_linear<T, T, T>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<batched_linear<T>, exec::cpu> {
  using op = batched_linear<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::gemm_nt<T>(p, out.y.extent[1], out.y.extent[2], in.x.extent[2], [&](std::int64_t g) {
      return detail::dense_problem<T>{in.x.data + g * in.x.stride[1],
                                      in.x.stride[0],
                                      in.x.extent[0],
                                      in.weight.data + g * in.weight.stride[0],
                                      in.weight.stride[1],
                                      out.y.data + g * out.y.stride[1],
                                      out.y.stride[0]};
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::backward_of_batched_linear<T, T>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<grouped_linear<T>, exec::cpu> {
  using op = grouped_linear<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::gemm_nt<T>(p, in.weight.extent[0], out.y.extent[1], in.x.extent[1], [&](std::int64_t e) {
      const std::int64_t begin = in.offsets(e);
      return detail::dense_problem<T>{in.x.data + begin * in.x.stride[0],
                                      in.x.stride[0],
                                      in.offsets(e + 1) - begin,
                                      in.weight.data + e * in.weight.stride[0],
                                      in.weight.stride[1],
                                      out.y.data + begin * out.y.stride[0],
                                      out.y.stride[0]};
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::backward_of_grouped_linear<T, T, T>(p, w, in, up, g);
  }
};

}  // namespace dsv4
