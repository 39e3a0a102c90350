// SPDX-License-Identifier: Apache-2.0
/// Matrix products with narrow weights on host threads; of their rounding holds what gemm.hpp says.
#pragma once

#include <dsv4/ops/cpu/linear.hpp>
#include <dsv4/ops/cpu/stored_gemm.hpp>
#include <dsv4/ops/linear.hpp>

#include <array>
#include <cstdint>

namespace dsv4 {
namespace detail {

template <class T, class W>
matrix_view<const T> widened_weight(const exec::cpu& p, workspace& w, const storage_matrix<const W>& weight) {
  const auto to = w.take<T>(weight.extent[0], weight.extent[1]);
  decode_rows<T, W>(p, weight, to.data);
  return to;
}

}  // namespace detail

template <class T, class W, class X>
struct kernel<linear<T, space::host, W, X>, exec::cpu> {
  using op = linear<T, space::host, W, X>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (detail::has_bf16_products<T, W, X>)
      if (detail::bf16_products<T, W, X>())
        return detail::bf16_gemm_nt<W, X>(p, in.x, out.y,
                                          std::array{detail::bf16_problem<W>{0, in.x.extent[0], in.weight}});
    const auto x = detail::decode_matrix<T, X>(p, in.x);
    detail::stored_gemm_nt<T, W>(p, 1, out.y.extent[1], in.x.extent[1], [&](std::int64_t) {
      return detail::stored_problem<T, W>{x.data,    x.stride,   in.x.extent[0],
                                          in.weight, out.y.data, out.y.stride[0]};
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::backward_of_linear<T, W, X>(p, w, in, up, g);
  }
};

template <class T, class W>
struct kernel<batched_linear<T, space::host, W>, exec::cpu> {
  using op = batched_linear<T, space::host, W>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::stored_gemm_nt<T, W>(p, out.y.extent[1], out.y.extent[2], in.x.extent[2], [&](std::int64_t g) {
      return detail::stored_problem<T, W>{
          in.x.data + g * in.x.stride[1],   in.x.stride[0], in.x.extent[0], in.weight[g],
          out.y.data + g * out.y.stride[1], out.y.stride[0]};
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::backward_of_batched_linear<T, W>(p, w, in, up, g);
  }
};

template <class T, class W, class X>
struct kernel<grouped_linear<T, space::host, W, X>, exec::cpu> {
  using op = grouped_linear<T, space::host, W, X>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (detail::has_bf16_products<T, W, X>)
      if (detail::bf16_products<T, W, X>())
        return detail::bf16_gemm_nt<W, X>(
            p, in.x, out.y,
            detail::described<detail::bf16_problem<W>>(in.weight.extent[0], [&](std::int64_t e) {
              const std::int64_t begin = in.offsets(e);
              return detail::bf16_problem<W>{begin, in.offsets(e + 1) - begin, in.weight[e]};
            }));
    const auto x = detail::decode_matrix<T, X>(p, in.x);
    detail::stored_gemm_nt<T, W>(p, in.weight.extent[0], out.y.extent[1], in.x.extent[1],
                                 [&](std::int64_t e) {
                                   const std::int64_t begin = in.offsets(e);
                                   return detail::stored_problem<T, W>{x.data + begin * x.stride,
                                                                       x.stride,
                                                                       in.offsets(e + 1) - begin,
                                                                       in.weight[e],
                                                                       out.y.data + begin * out.y.stride[0],
                                                                       out.y.stride[0]};
                                 });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::backward_of_grouped_linear<T, W, X>(p, w, in, up, g);
  }
};

}  // namespace dsv4
