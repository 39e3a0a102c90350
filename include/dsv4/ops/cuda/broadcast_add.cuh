// SPDX-License-Identifier: Apache-2.0
/// Adds one row to every residual stream of a token, on the GPU.
#pragma once

#include <dsv4/ops/broadcast_add.hpp>
#include <dsv4/ops/cuda/common.cuh>

namespace dsv4 {

namespace detail {
template <class T>
__global__ void __launch_bounds__(256)
    broadcast_add_kernel(matrix_view<const T, space::device> e, tensor_view<T, space::device> x) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t width = x.extent[2], count = x.extent[0] * width;
  for (std::int64_t j = global_thread(); j < count; j += global_threads()) {
    const std::int64_t t = j / width, c = j % width;
    const A value = widened<A>(e(t, c));
    for (std::int64_t i = 0; i < x.extent[1]; ++i) x(t, i, c) = narrowed<T>(widened<A>(x(t, i, c)) + value);
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    broadcast_add_backward_kernel(tensor_view<const T, space::device> dy, matrix_view<T, space::device> de) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t width = dy.extent[2];
  for (std::int64_t j = global_thread(); j < dy.extent[0] * width; j += global_threads()) {
    A sum = 0;
    for (std::int64_t i = 0; i < dy.extent[1]; ++i) sum += widened<A>(dy(j / width, i, j % width));
    de(j / width, j % width) = narrowed<T>(sum);
  }
}
}  // namespace detail

template <class T>
struct kernel<broadcast_add<T, space::device>, exec::cuda> {
  using op = broadcast_add<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("broadcast_add", detail::broadcast_add_kernel<T>,
             detail::loop_grid(p, out.x.extent[0] * out.x.extent[2], 256), 256, 0, in.e, out.x);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs&,
                       const typename op::upstream& up, const typename op::gradients& g) {
    p.launch("broadcast_add", detail::broadcast_add_backward_kernel<T>,
             detail::loop_grid(p, up.dy.extent[0] * up.dy.extent[2], 256), 256, 0, up.dy, g.de);
  }
};

}  // namespace dsv4
