// SPDX-License-Identifier: Apache-2.0
/// Matrix products on the GPU: cuBLASLt where both sides are stored as it multiplies them, else our own.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_portable.cuh>
#include <dsv4/ops/linear.hpp>

#include <type_traits>

namespace dsv4 {

namespace detail {
template <class T>
inline constexpr cudaDataType_t cuda_type = std::is_same_v<T, double>  ? CUDA_R_64F
                                            : std::is_same_v<T, float> ? CUDA_R_32F
                                                                       : CUDA_R_16BF;
/// Whether cuBLASLt multiplies x of `X` by weights of `W` into `T`, without rounding the inputs.
template <class T, class W, class X>
inline constexpr bool cublas_multiplies =
    std::is_same_v<W, X> && (std::is_same_v<T, X> || (std::is_same_v<T, float> && std::is_same_v<X, bf16>)) &&
    (std::is_same_v<X, float> || std::is_same_v<X, double> || std::is_same_v<X, bf16>);

template <class T, class X>
exec::cuda_matmul::problem matmul_problem() {
  exec::cuda_matmul::problem m{};
  m.x_type = m.weight_type = cuda_type<X>;
  m.y_type = cuda_type<T>;
  m.compute = std::is_same_v<X, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  m.scale_type = std::is_same_v<X, double> ? CUDA_R_64F : CUDA_R_32F;
  m.batch = 1;
  return m;
}
}  // namespace detail

template <class T, class W, class X>
struct kernel<linear<T, space::device, W, X>, exec::cuda> {
  using op = linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (detail::cublas_multiplies<T, W, X>) {
      auto m = detail::matmul_problem<T, X>();
      m.rows = out.y.extent[0], m.columns = out.y.extent[1], m.inner = in.x.extent[1];
      m.x = in.x.data, m.weight = in.weight.data, m.y = out.y.data;
      m.x_stride = in.x.stride[0], m.weight_stride = in.weight.stride[0], m.y_stride = out.y.stride[0];
      if (p.matmul("linear", m)) return;
    }
    detail::launch_linear(p, "linear", in.x, in.weight, out.y);
  }
};

template <class T, class W>
struct kernel<batched_linear<T, space::device, W>, exec::cuda> {
  using op = batched_linear<T, space::device, W>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (detail::cublas_multiplies<T, W, T>) {
      auto m = detail::matmul_problem<T, T>();
      m.rows = out.y.extent[0], m.columns = out.y.extent[2], m.inner = in.x.extent[2];
      m.batch = out.y.extent[1];
      m.x = in.x.data, m.weight = in.weight.data, m.y = out.y.data;
      m.x_stride = in.x.stride[0], m.weight_stride = in.weight.stride[1], m.y_stride = out.y.stride[0];
      m.x_batch_stride = in.x.stride[1], m.weight_batch_stride = in.weight.stride[0];
      m.y_batch_stride = out.y.stride[1];
      if (p.matmul("batched_linear", m)) return;
    }
    detail::launch_batched_linear(p, "batched_linear", in.x, in.weight, out.y);
  }
};

template <class T, class W, class X>
struct kernel<grouped_linear<T, space::device, W, X>, exec::cuda> {
  using op = grouped_linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    detail::launch_grouped_linear(p, "grouped_linear", in.x, in.offsets, in.weight, out.y);
  }
};

}  // namespace dsv4
