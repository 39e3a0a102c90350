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
  using A = accumulator<T>;
  const std::int64_t t = blockIdx.x;
  const std::int64_t id = tokens(t);
  const bool known = id >= 0 && id < table.extent[0];
  for (std::int64_t c = threadIdx.x; c < x.extent[2]; c += blockDim.x) {
    const T value = known ? narrowed<T>(widened<A>(table(id, c))) : narrowed<T>(not_a_number<A>);
    for (std::int64_t i = 0; i < x.extent[1]; ++i) x(t, i, c) = value;
  }
}
}  // namespace detail

template <class T, class W>
struct kernel<embedding<T, space::device, W>, exec::cuda> {
  using op = embedding<T, space::device, W>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("embedding", detail::embedding_kernel<T, W>, dim3(static_cast<unsigned>(out.x.extent[0])), 256,
             0, in.tokens, in.table, out.x);
  }
};

}  // namespace dsv4
