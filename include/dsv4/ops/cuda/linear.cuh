// SPDX-License-Identifier: Apache-2.0
/// Matrix products on the GPU: cuBLASLt where both sides are stored as it multiplies them, or rows are so
/// many that weights are decoded for it; else our own. Block-scaled matrices of a stack begin at multiples of
/// 16 bytes.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decoded_matmul.cuh>
#include <dsv4/ops/cuda/gemm_dweight_sm90.cuh>
#include <dsv4/ops/cuda/gemm_fp8_sm90.cuh>
#include <dsv4/ops/cuda/gemm_mxfp4_sm90.cuh>
#include <dsv4/ops/cuda/gemm_portable_backward.cuh>
#include <dsv4/ops/cuda/gemm_sm90.cuh>
#include <dsv4/ops/cuda/gemv.cuh>
#include <dsv4/ops/linear.hpp>

#include <string_view>
#include <type_traits>

namespace dsv4 {

namespace detail {
template <class T>
inline constexpr cudaDataType_t cuda_type = std::is_same_v<T, double>  ? CUDA_R_64F
                                            : std::is_same_v<T, float> ? CUDA_R_32F
                                            : std::is_same_v<T, fp16>  ? CUDA_R_16F
                                                                       : CUDA_R_16BF;
/// Whether cuBLASLt multiplies x of `X` by weights of `W` into `T`, without rounding the inputs.
template <class T, class W, class X>
inline constexpr bool cublas_multiplies =
    std::is_same_v<W, X> && (std::is_same_v<T, X> || (std::is_same_v<T, float> && std::is_same_v<X, bf16>)) &&
    (std::is_same_v<X, float> || std::is_same_v<X, double> || std::is_same_v<X, bf16>);

/// Whether the matrix units can multiply x of `X` by weights of `W` without rounding the inputs.
template <class T, class W, class X>
inline constexpr bool multiplies_sm90 = sm90_storage<W>&& sm90_storage<X> &&
                                        (std::is_same_v<T, float> || std::is_same_v<T, bf16>);

/// Whether so few rows are for gemv first: cuBLASLt is slower with a few, though not with more.
template <class T, class W, class X>
constexpr bool prefers_gemv(std::int64_t rows) {
  return multiplies_sm90<T, W, X> && (!cublas_multiplies<T, W, X> || rows <= 4);
}

/// Whether the FP8 matrix units multiply x of `X` by weights of `W` into `T`. They do not keep what float
/// results would show.
template <class T, class W, class X>
inline constexpr bool multiplies_fp8 = std::is_same_v<T, bf16>&& std::is_same_v<X, fp8_activation> &&
                                       (std::is_same_v<W, fp8_weight> || std::is_same_v<W, mxfp4>);

/// Whether weights of `W` can be decoded for products by cuBLASLt.
template <class T, class W, class X>
inline constexpr bool decoded_for_cublas = block_format<W>&& cublas_multiplies<T, bf16, X>;

/// Whether so many rows are for tiles of decoded weights, though gemv would take them.
template <class T, class W, class X>
bool prefers_mxfp4_tiles(const exec::cuda& p, std::int64_t rows) {
  return multiplies_fp8<T, W, X> && std::is_same_v<W, mxfp4> && rows > 16 && p.device().major == 9;
}

/// Queues the products on the matrix units where these operands allow.
template <class T, class W, class X, class Problem>
bool launch_products(const exec::cuda& p, std::string_view where, const Problem& m) {
  if constexpr (multiplies_fp8<T, W, X> && std::is_same_v<W, mxfp4>)
    if (prefers_mxfp4_tiles<T, W, X>(p, m.y.extent[0]) && launch_gemm_mxfp4(p, where, m)) return true;
  if (launch_gemv(p, where, m)) return true;
  if constexpr (multiplies_fp8<T, W, X> && std::is_same_v<W, fp8_weight>)
    if (launch_gemm_fp8(p, where, m)) return true;
  return launch_gemm_sm90(p, where, m);
}

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
/// Queues `m` with the matrix or stack `weight`, as it is or decoded; false where cuBLASLt does not take it.
template <class T, class X, class WView>
bool matmul_with(const exec::cuda& p, std::string_view where, exec::cuda_matmul::problem m,
                 const WView& weight) {
  if constexpr (requires { typename WView::format; }) {
    return decoded_matmul<T, X>(p, where, m, weight);
  } else {
    m.weight = weight.data, m.weight_stride = weight.stride[WView::rank - 2];
    if constexpr (WView::rank == 3) m.weight_batch_stride = weight.stride[0];
    return p.matmul(where, m);
  }
}
}  // namespace detail

template <class T, class W, class X>
struct kernel<linear<T, space::device, W, X>, exec::cuda> {
  using op = linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    [[maybe_unused]] const detail::gemm_problem<T, decltype(in.x), decltype(in.weight)> products{
        in.x, in.weight, out.y, nullptr, 0, 0, 1};
    if constexpr (detail::multiplies_sm90<T, W, X>)
      if (detail::prefers_gemv<T, W, X>(out.y.extent[0]) && detail::launch_gemv(p, "linear", products))
        return;
    if constexpr (detail::cublas_multiplies<T, W, X> || detail::decoded_for_cublas<T, W, X>) {
      auto m = detail::matmul_problem<T, X>();
      m.rows = out.y.extent[0], m.columns = out.y.extent[1], m.inner = in.x.extent[1];
      m.x = in.x.data, m.y = out.y.data;
      m.x_stride = in.x.stride[0], m.y_stride = out.y.stride[0];
      if (detail::matmul_with<T, X>(p, "linear", m, in.weight)) return;
    }
    if constexpr (detail::multiplies_sm90<T, W, X>)
      if (detail::launch_products<T, W, X>(p, "linear", products)) return;
    detail::launch_linear(p, "linear", in.x, in.weight, out.y);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    if (g.dx.data && !matmul_dx(p, in, up, g) && !sm90_dx(p, in, up, g))
      detail::launch_linear(p, "linear", up.dy, detail::transposed(in.weight), g.dx, g.add_to_dx);
    if (g.dweight.data && !matmul_dweight(p, in, up, g) && !sm90_dweight(p, in, up, g))
      detail::launch_linear(p, "linear", detail::transposed(up.dy), detail::transposed(in.x), g.dweight,
                            true);
  }

 private:
  static bool matmul_dx(const exec::cuda& p, const typename op::inputs& in, const typename op::upstream& up,
                        const typename op::gradients& g) {
    if constexpr (std::is_same_v<T, W> || detail::decoded_for_cublas<T, W, T>) {
      auto m = detail::matmul_problem<T, T>();
      m.rows = up.dy.extent[0], m.columns = in.x.extent[1], m.inner = up.dy.extent[1];
      m.weight_transposed = true, m.accumulate = g.add_to_dx;
      m.x = up.dy.data, m.y = g.dx.data;
      m.x_stride = up.dy.stride[0], m.y_stride = g.dx.stride[0];
      return detail::matmul_with<T, T>(p, "linear", m, in.weight);
    }
    return false;
  }
  static bool matmul_dweight(const exec::cuda& p, const typename op::inputs& in,
                             const typename op::upstream& up, const typename op::gradients& g) {
    if constexpr (std::is_same_v<T, X>) {
      auto m = detail::matmul_problem<T, T>();
      m.rows = up.dy.extent[1], m.columns = in.x.extent[1], m.inner = up.dy.extent[0];
      m.x_transposed = m.weight_transposed = m.accumulate = true;
      m.x = up.dy.data, m.weight = in.x.data, m.y = g.dweight.data;
      m.x_stride = up.dy.stride[0], m.weight_stride = in.x.stride[0], m.y_stride = g.dweight.stride[0];
      return p.matmul("linear", m);
    }
    return false;
  }
  static bool sm90_dx(const exec::cuda& p, const typename op::inputs& in, const typename op::upstream& up,
                      const typename op::gradients& g) {
    if constexpr (detail::multiplies_sm90<T, W, T> && !std::is_same_v<T, W>) {
      const detail::gemm_problem<T, decltype(up.dy), decltype(in.weight), true> m{
          up.dy, in.weight, g.dx, nullptr, 0, 0, 1, g.add_to_dx};
      return detail::launch_gemm_sm90(p, "linear", m);
    }
    return false;
  }
  static bool sm90_dweight(const exec::cuda& p, const typename op::inputs& in,
                           const typename op::upstream& up, const typename op::gradients& g) {
    if constexpr (detail::multiplies_sm90<T, X, T> && !std::is_same_v<T, X>) {
      tensor_view<T, space::device> only(g.dweight.data, 1, g.dweight.extent[0], g.dweight.extent[1]);
      only.stride[1] = g.dweight.stride[0];
      return detail::launch_dweight_sm90(p, "linear",
                                         detail::dweight_problem<decltype(in.x)>{up.dy, in.x, nullptr, only});
    }
    return false;
  }
};

template <class T, class W>
struct kernel<batched_linear<T, space::device, W>, exec::cuda> {
  using op = batched_linear<T, space::device, W>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (detail::cublas_multiplies<T, W, T> || detail::decoded_for_cublas<T, W, T>) {
      auto m = detail::matmul_problem<T, T>();
      m.rows = out.y.extent[0], m.columns = out.y.extent[2], m.inner = in.x.extent[2];
      m.batch = out.y.extent[1];
      m.x = in.x.data, m.y = out.y.data;
      m.x_stride = in.x.stride[0], m.y_stride = out.y.stride[0];
      m.x_batch_stride = in.x.stride[1], m.y_batch_stride = out.y.stride[1];
      if (detail::matmul_with<T, T>(p, "batched_linear", m, in.weight)) return;
    }
    if constexpr (detail::multiplies_sm90<T, W, T> && !std::is_same_v<T, W>) {
      const auto x = detail::middle(in.x, 0);
      detail::gemm_problem<T, matrix_view<const T, space::device>, decltype(in.weight)> m{
          x,
          in.weight,
          detail::middle(out.y, 0),
          nullptr,
          in.x.stride[1],
          out.y.stride[1],
          static_cast<int>(out.y.extent[1])};
      if (in.x.stride[1] % 8 == 0 && detail::launch_products<T, W, T>(p, "batched_linear", m)) return;
    }
    detail::launch_batched_linear(p, "batched_linear", in.x, in.weight, out.y);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dy.extent[0], groups = up.dy.extent[1], columns = up.dy.extent[2],
                       inner = in.x.extent[2];
    if (g.dx.data && !matmul_dx(p, in, up, g) && !sm90_dx(p, in, up, g))
      p.launch("batched_linear", detail::batched_dx_kernel<T, std::remove_const_t<decltype(in.weight)>>,
               detail::gemm_grid(rows, inner, groups), detail::gemm_threads, 0, up.dy, in.weight, g.dx);
    if (g.dweight.data && !matmul_dweight(p, in, up, g))
      p.launch("batched_linear", detail::batched_dweight_kernel<T>, detail::gemm_grid(columns, inner, groups),
               detail::gemm_threads, 0, up.dy, in.x, g.dweight);
  }

 private:
  static bool matmul_dx(const exec::cuda& p, const typename op::inputs& in, const typename op::upstream& up,
                        const typename op::gradients& g) {
    if constexpr (std::is_same_v<T, W> || detail::decoded_for_cublas<T, W, T>) {
      auto m = detail::matmul_problem<T, T>();
      m.rows = up.dy.extent[0], m.columns = in.x.extent[2], m.inner = up.dy.extent[2],
      m.batch = up.dy.extent[1];
      m.weight_transposed = true;
      m.x = up.dy.data, m.y = g.dx.data;
      m.x_stride = up.dy.stride[0], m.y_stride = g.dx.stride[0];
      m.x_batch_stride = up.dy.stride[1], m.y_batch_stride = g.dx.stride[1];
      return detail::matmul_with<T, T>(p, "batched_linear", m, in.weight);
    }
    return false;
  }
  static bool matmul_dweight(const exec::cuda& p, const typename op::inputs& in,
                             const typename op::upstream& up, const typename op::gradients& g) {
    auto m = detail::matmul_problem<T, T>();
    m.rows = up.dy.extent[2], m.columns = in.x.extent[2], m.inner = up.dy.extent[0],
    m.batch = up.dy.extent[1];
    m.x_transposed = m.weight_transposed = m.accumulate = true;
    m.x = up.dy.data, m.weight = in.x.data, m.y = g.dweight.data;
    m.x_stride = up.dy.stride[0], m.weight_stride = in.x.stride[0], m.y_stride = g.dweight.stride[1];
    m.x_batch_stride = up.dy.stride[1], m.weight_batch_stride = in.x.stride[1];
    m.y_batch_stride = g.dweight.stride[0];
    return p.matmul("batched_linear", m);
  }
  static bool sm90_dx(const exec::cuda& p, const typename op::inputs& in, const typename op::upstream& up,
                      const typename op::gradients& g) {
    if constexpr (detail::multiplies_sm90<T, W, T> && !std::is_same_v<T, W>) {
      const detail::gemm_problem<T, matrix_view<const T, space::device>, decltype(in.weight), true> m{
          detail::middle(up.dy, 0), in.weight,      detail::middle(g.dx, 0),          nullptr,
          up.dy.stride[1],          g.dx.stride[1], static_cast<int>(up.dy.extent[1])};
      return up.dy.stride[1] % 8 == 0 && detail::launch_gemm_sm90(p, "batched_linear", m);
    }
    return false;
  }
};

template <class T, class W, class X>
struct kernel<grouped_linear<T, space::device, W, X>, exec::cuda> {
  using op = grouped_linear<T, space::device, W, X>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (detail::multiplies_sm90<T, W, X>) {
      detail::gemm_problem<T, decltype(in.x), decltype(in.weight)> m{
          in.x, in.weight, out.y, in.offsets.data, 0, 0, static_cast<int>(in.weight.extent[0])};
      if (detail::launch_products<T, W, X>(p, "grouped_linear", m)) return;
    }
    detail::launch_grouped_linear(p, "grouped_linear", in.x, in.offsets, in.weight, out.y);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dy.extent[0], experts = in.weight.extent[0], columns = up.dy.extent[1],
                       inner = in.x.extent[1];
    if (g.dx.data && !sm90_dx(p, in, up, g))
      p.launch("grouped_linear", detail::grouped_dx_kernel<T, std::remove_const_t<decltype(in.weight)>>,
               detail::gemm_grid(rows, inner, experts, 8), detail::gemm_threads, 0, up.dy, in.offsets,
               in.weight, g.dx, g.add_to_dx);
    if (g.dweight.data && !sm90_dweight(p, in, up, g))
      p.launch("grouped_linear", detail::grouped_dweight_kernel<T, std::remove_const_t<decltype(in.x)>>,
               detail::gemm_grid(columns, inner, experts), detail::gemm_threads, 0, up.dy, in.offsets, in.x,
               g.dweight);
  }

 private:
  static bool sm90_dx(const exec::cuda& p, const typename op::inputs& in, const typename op::upstream& up,
                      const typename op::gradients& g) {
    if constexpr (detail::multiplies_sm90<T, W, T>) {
      const detail::gemm_problem<T, decltype(up.dy), decltype(in.weight), true> m{
          up.dy, in.weight, g.dx, in.offsets.data, 0, 0, static_cast<int>(in.weight.extent[0]), g.add_to_dx};
      return detail::launch_gemm_sm90(p, "grouped_linear", m);
    }
    return false;
  }
  static bool sm90_dweight(const exec::cuda& p, const typename op::inputs& in,
                           const typename op::upstream& up, const typename op::gradients& g) {
    if constexpr (detail::multiplies_sm90<T, X, T>)
      return detail::launch_dweight_sm90(
          p, "grouped_linear",
          detail::dweight_problem<decltype(in.x)>{up.dy, in.x, in.offsets.data, g.dweight});
    return false;
  }
};

}  // namespace dsv4
