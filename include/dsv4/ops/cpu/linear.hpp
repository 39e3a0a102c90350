// SPDX-License-Identifier: Apache-2.0
/// Matrix products on host threads; see gemm.hpp for what holds of their rounding.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/linear.hpp>

namespace dsv4 {

template <class T>
struct kernel<linear<T>, exec::cpu> {
  using op = linear<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::gemm_nt<T>(p, 1, out.y.extent[1], in.x.extent[1], [&](std::int64_t) {
      return detail::gemm_problem<T>{in.x.data,           in.x.stride[0], in.x.extent[0], in.weight.data,
                                     in.weight.stride[0], out.y.data,     out.y.stride[0]};
    });
  }
};

template <class T>
struct kernel<batched_linear<T>, exec::cpu> {
  using op = batched_linear<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::gemm_nt<T>(p, out.y.extent[1], out.y.extent[2], in.x.extent[2], [&](std::int64_t g) {
      return detail::gemm_problem<T>{in.x.data + g * in.x.stride[1],
                                     in.x.stride[0],
                                     in.x.extent[0],
                                     in.weight.data + g * in.weight.stride[0],
                                     in.weight.stride[1],
                                     out.y.data + g * out.y.stride[1],
                                     out.y.stride[0]};
    });
  }
};

template <class T>
struct kernel<grouped_linear<T>, exec::cpu> {
  using op = grouped_linear<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::gemm_nt<T>(p, in.weight.extent[0], out.y.extent[1], in.x.extent[1], [&](std::int64_t e) {
      const std::int64_t begin = in.offsets(e);
      return detail::gemm_problem<T>{in.x.data + begin * in.x.stride[0],
                                     in.x.stride[0],
                                     in.offsets(e + 1) - begin,
                                     in.weight.data + e * in.weight.stride[0],
                                     in.weight.stride[1],
                                     out.y.data + begin * out.y.stride[0],
                                     out.y.stride[0]};
    });
  }
};

}  // namespace dsv4
