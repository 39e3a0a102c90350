// SPDX-License-Identifier: Apache-2.0
/// Token embedding on the GPU. A kernel cannot throw: rows of token ids outside the table become NaN.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/embedding.hpp>

namespace dsv4 {

namespace detail {
template <class T, class W>
__global__ void __launch_bounds__(256)
    embedding_kernel(vector_view<const std::int32_t, space::device> tokens,
                     matrix_view<const W, space::device> table, tensor_view<T, space::device> x) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t t = blockIdx.x;
  const std::int64_t id = tokens(t);
  const bool known = id >= 0 && id < table.extent[0];
  for (std::int64_t c = threadIdx.x; c < x.extent[2]; c += blockDim.x) {
    const T value = known ? narrowed<T>(widened<A>(table(id, c))) : narrowed<T>(not_a_number<A>);
    for (std::int64_t i = 0; i < x.extent[1]; ++i) x(t, i, c) = value;
  }
}

/// Block (t, channels): where token t is the first of its id, the sum over all tokens of that id, in order.
template <class T>
__global__ void __launch_bounds__(128)
    embedding_backward_kernel(vector_view<const std::int32_t, space::device> tokens,
                              tensor_view<const T, space::device> dx, matrix_view<T, space::device> dtable) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ unsigned same[4];
  const std::int64_t t = blockIdx.x, count = tokens.extent[0];
  const std::int32_t id = tokens(t);
  if (id < 0 || id >= dtable.extent[0]) return;
  bool earlier = false;
  for (std::int64_t i = threadIdx.x; i < t; i += 128) earlier = earlier || tokens(i) == id;
  if (__syncthreads_or(earlier)) return;
  const std::int64_t c = std::int64_t{blockIdx.y} * 128 + threadIdx.x;
  const bool inside = c < dtable.extent[1];
  A sum = 0;
  for (std::int64_t base = t; base < count; base += 128) {
    const std::int64_t i = base + threadIdx.x;
    const unsigned ballot = __ballot_sync(0xffffffffu, i < count && tokens(i) == id);
    __syncthreads();
    if (threadIdx.x % 32 == 0) same[threadIdx.x / 32] = ballot;
    __syncthreads();
    for (int j = 0; j < 4; ++j)
      for (unsigned left = same[j]; inside && left; left &= left - 1) {
        const std::int64_t row = base + 32 * j + __ffs(static_cast<int>(left)) - 1;
        for (std::int64_t s = 0; s < dx.extent[1]; ++s) sum += widened<A>(dx(row, s, c));
      }
  }
  if (inside) dtable(id, c) = narrowed<T>(widened<A>(dtable(id, c)) + sum);
}
}  // namespace detail

template <class T, class W>
struct kernel<embedding<T, space::device, W>, exec::cuda> {
  using op = embedding<T, space::device, W>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("embedding", detail::embedding_kernel<T, W>, dim3(static_cast<unsigned>(out.x.extent[0])), 256,
             0, in.tokens, in.table, out.x);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    p.launch("embedding", detail::embedding_backward_kernel<T>,
             dim3(static_cast<unsigned>(in.tokens.extent[0]),
                  static_cast<unsigned>(detail::ceil_div(g.dtable.extent[1], 128))),
             128, 0, in.tokens, up.dx, g.dtable);
  }
};

}  // namespace dsv4
