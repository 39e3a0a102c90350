// SPDX-License-Identifier: Apache-2.0
/// Products of few rows on the GPU in one launch: two at a time, inputs rounded and gates made on the way;
/// else op by op.
#pragma once

#include <dsv4/ops/activation_linear.hpp>
#include <dsv4/ops/cuda/gemv.cuh>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/ops/cuda/quantise.cuh>
#include <dsv4/ops/cuda/swiglu.cuh>

namespace dsv4 {

template <class T, class W, class X>
inline constexpr bool has_fused_kernel<activation_linear<T, space::device, W, X>, exec::cuda> = true;
template <class T, class W, class X>
inline constexpr bool has_fused_kernel<activation_linear_pair<T, space::device, W, X>, exec::cuda> = true;
template <class T, class W, class X>
inline constexpr bool has_fused_kernel<gated_linear<T, space::device, W, X>, exec::cuda> = true;
template <class T, class W, class X>
inline constexpr bool has_fused_kernel<grouped_activation_linear<T, space::device, W, X>, exec::cuda> = true;
template <class T, class W, class X>
inline constexpr bool has_fused_kernel<grouped_gated_linear<T, space::device, W, X>, exec::cuda> = true;

namespace detail {
/// Inputs of `X` that gemv makes of x, or x itself.
template <class X>
struct gemv_input {
  using type = rounded_rows<X>;
};
template <>
struct gemv_input<bf16> {
  using type = matrix_view<const bf16, space::device>;
};

/// launch_gemv with inputs rounded to `X`; false also where rows are many, or these types are not for it.
template <class T, class W, class X, class WView, class Second = gemv_alone>
bool launch_activation_gemv(const exec::cuda& p, std::string_view where,
                            const matrix_view<const T, space::device>& x, const WView& weight,
                            const matrix_view<T, space::device>& y, const std::int64_t* offsets, int groups,
                            const Second& second = {}) {
  if constexpr (std::is_same_v<T, bf16> && multiplies_sm90<T, W, X> &&
                (std::is_same_v<X, bf16> || std::is_same_v<X, fp8_activation>)) {
    using input = typename gemv_input<X>::type;
    if (!offsets && !prefers_gemv<T, W, X>(x.extent[0])) return false;
    if (prefers_mxfp4_tiles<T, W, X>(p, x.extent[0])) return false;
    if (!std::is_same_v<X, bf16> && x.extent[1] % fp8_activation::block_columns != 0) return false;
    return launch_gemv(p, where, gemm_problem<T, input, WView>{input(x), weight, y, offsets, 0, 0, groups},
                       second);
  }
  return false;
}
}  // namespace detail

template <class T, class W, class X>
struct kernel<activation_linear<T, space::device, W, X>, exec::cuda> {
  using op = activation_linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out) {
    if (!detail::launch_activation_gemv<T, W, X>(p, "activation_linear", in.x, in.weight, out.y, nullptr, 1))
      op::by_ops(p, w, in, out);
  }
};

template <class T, class W, class X>
struct kernel<activation_linear_pair<T, space::device, W, X>, exec::cuda> {
  using op = activation_linear_pair<T, space::device, W, X>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out) {
    const detail::gemv_beside<T, decltype(in.weight)> other{in.other, out.second};
    if (!detail::launch_activation_gemv<T, W, X>(p, "activation_linear_pair", in.x, in.weight, out.first,
                                                 nullptr, 1, other))
      op::by_ops(p, w, in, out);
  }
};

template <class T, class W, class X>
struct kernel<gated_linear<T, space::device, W, X>, exec::cuda> {
  using op = gated_linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out) {
    const detail::gemv_gated<T, decltype(in.up)> up{in.up, {}, in.limit};
    if (!detail::launch_activation_gemv<T, W, X>(p, "gated_linear", in.x, in.gate, out.h, nullptr, 1, up))
      op::by_ops(p, w, in, out);
  }
};

template <class T, class W, class X>
struct kernel<grouped_activation_linear<T, space::device, W, X>, exec::cuda> {
  using op = grouped_activation_linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out) {
    if (!detail::launch_activation_gemv<T, W, X>(p, "grouped_activation_linear", in.x, in.weight, out.y,
                                                 in.offsets.data, static_cast<int>(in.weight.extent[0])))
      op::by_ops(p, w, in, out);
  }
};

template <class T, class W, class X>
struct kernel<grouped_gated_linear<T, space::device, W, X>, exec::cuda> {
  using op = grouped_gated_linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out) {
    const detail::gemv_gated<T, decltype(in.up)> up{in.up, in.row_weight, in.limit};
    if (!detail::launch_activation_gemv<T, W, X>(p, "grouped_gated_linear", in.x, in.gate, out.h,
                                                 in.offsets.data, static_cast<int>(in.gate.extent[0]), up))
      op::by_ops(p, w, in, out);
  }
};

}  // namespace dsv4
