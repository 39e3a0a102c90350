// SPDX-License-Identifier: Apache-2.0
/// Clamped SwiGLU on the GPU.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/swiglu.hpp>

namespace dsv4 {

namespace detail {
template <class A>
__device__ __forceinline__ A swiglu_value(A gate, A up, A limit) {
  // Comparisons that are false for NaN keep it.
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return gate / (A(1) + exp(-gate)) * up;
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    swiglu_kernel(matrix_view<const T, space::device> gate, matrix_view<const T, space::device> up,
                  vector_view<const T, space::device> row_weight, double limit_,
                  matrix_view<T, space::device> h) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  const A limit = static_cast<A>(limit_);
  const std::int64_t packs = gate.extent[1] / N, count = gate.extent[0] * packs;
  for (std::int64_t i = global_thread(); i < count; i += global_threads()) {
    const std::int64_t r = i / packs, c = i % packs * N;
    P g = *reinterpret_cast<const P*>(&gate(r, c));
    const P u = *reinterpret_cast<const P*>(&up(r, c));
    const A weight = row_weight.data ? widened<A>(row_weight(r)) : A(1);
#pragma unroll
    for (int j = 0; j < N; ++j)
      g.value[j] = narrowed<T>(swiglu_value(widened<A>(g.value[j]), widened<A>(u.value[j]), limit) * weight);
    *reinterpret_cast<P*>(&h(r, c)) = g;
  }
}

/// One block per row.
template <class T, int N>
__global__ void __launch_bounds__(256)
    swiglu_backward_kernel(matrix_view<const T, space::device> gate, matrix_view<const T, space::device> up,
                           vector_view<const T, space::device> row_weight, double limit_,
                           matrix_view<const T, space::device> dh, matrix_view<T, space::device> dgate,
                           matrix_view<T, space::device> dup, vector_view<T, space::device> drow_weight) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  __shared__ A partial[8];
  const A limit = static_cast<A>(limit_);
  const std::int64_t r = blockIdx.x, packs = gate.extent[1] / N;
  const A weight = row_weight.data ? widened<A>(row_weight(r)) : A(1);
  A sum = 0;
  for (std::int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    P g = *reinterpret_cast<const P*>(&gate(r, i * N)), u = *reinterpret_cast<const P*>(&up(r, i * N));
    const P upstream = *reinterpret_cast<const P*>(&dh(r, i * N));
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A x = widened<A>(g.value[j]), y = widened<A>(u.value[j]), d = widened<A>(upstream.value[j]);
      const A a = x > limit ? limit : x, b = y > limit ? limit : y < -limit ? -limit : y;
      const A s = A(1) / (A(1) + exp(-a));
      sum += d * a * s * b;
      g.value[j] = narrowed<T>(x <= limit ? d * weight * b * s * (A(1) + a * (A(1) - s)) : A(0));
      u.value[j] = narrowed<T>(y <= limit && y >= -limit ? d * weight * a * s : A(0));
    }
    if (dgate.data) *reinterpret_cast<P*>(&dgate(r, i * N)) = g;
    if (dup.data) *reinterpret_cast<P*>(&dup(r, i * N)) = u;
  }
  if (!drow_weight.data) return;
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) drow_weight(r) = narrowed<T>(sum);
}
}  // namespace detail

template <class T>
struct kernel<swiglu<T, space::device>, exec::cuda> {
  using op = swiglu<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    const auto run = [&](auto kernel, int width) {
      p.launch("swiglu", kernel, detail::loop_grid(p, out.h.size() / width, 256), 256, 0, in.gate, in.up,
               in.row_weight, in.limit, out.h);
    };
    if (detail::all_vectorisable(in.gate, in.up, out.h))
      run(detail::swiglu_kernel<T, n>, n);
    else
      run(detail::swiglu_kernel<T, 1>, 1);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const auto run = [&](auto kernel) {
      p.launch("swiglu", kernel, dim3(static_cast<unsigned>(in.gate.extent[0])), 256, 0, in.gate, in.up,
               in.row_weight, in.limit, up.dh, g.dgate, g.dup, g.drow_weight);
    };
    if (detail::all_vectorisable(in.gate, in.up, up.dh) && (!g.dgate.data || detail::vectorisable(g.dgate)) &&
        (!g.dup.data || detail::vectorisable(g.dup)))
      run(detail::swiglu_backward_kernel<T, detail::vector_width<T>>);
    else
      run(detail::swiglu_backward_kernel<T, 1>);
  }
};

}  // namespace dsv4
