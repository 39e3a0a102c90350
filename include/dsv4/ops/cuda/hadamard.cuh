// SPDX-License-Identifier: Apache-2.0
/// The Walsh-Hadamard transform on the GPU: log2(D) passes of sums and differences in shared memory.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/hadamard.hpp>

namespace dsv4 {

namespace detail {
/// x = H from / sqrt(D); they may be the same. One block per row.
template <class T>
__global__ void __launch_bounds__(256)
    hadamard_kernel(matrix_view<const T, space::device> from, matrix_view<T, space::device> x) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  A* const v = reinterpret_cast<A*>(memory);
  const std::int64_t width = x.extent[1];
  T* const row = x.data + std::int64_t{blockIdx.x} * x.stride[0];
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) v[i] = widened<A>(from(blockIdx.x, i));
  for (std::int64_t half = 1; half < width; half *= 2) {
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < width / 2; i += blockDim.x) {
      const std::int64_t at = i / half * 2 * half + i % half;
      const A a = v[at], b = v[at + half];
      v[at] = a + b, v[at + half] = a - b;
    }
  }
  __syncthreads();
  const A scale = A(1) / sqrt(static_cast<A>(width));
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) row[i] = narrowed<T>(v[i] * scale);
}
}  // namespace detail

template <class T>
struct kernel<hadamard<T, space::device>, exec::cuda> {
  using op = hadamard<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs&, const typename op::outputs& out) {
    transform(p, out.x, out.x);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs&,
                       const typename op::upstream& up, const typename op::gradients& g) {
    transform(p, up.dy, g.dx);
  }

 private:
  static void transform(const exec::cuda& p, const matrix_view<const T, space::device>& from,
                        const matrix_view<T, space::device>& to) {
    const std::int64_t width = to.extent[1];
    const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(detail::accumulator<T>);
    expect(bytes <= p.device().shared_memory_per_block, "hadamard", "x width",
           "a row that fits in shared memory", width);
    const int threads = static_cast<int>(std::clamp<std::int64_t>(width / 2, 32, 256));
    p.launch("hadamard", detail::hadamard_kernel<T>, dim3(static_cast<unsigned>(to.extent[0])), threads,
             bytes, from, to);
  }
};

}  // namespace dsv4
