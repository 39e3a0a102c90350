// SPDX-License-Identifier: Apache-2.0
/// Sums of squares on the GPU, in double: a block for each chunk, then the chunks in order.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/train/gradient_clip.hpp>

#include <cstdint>

namespace dsv4 {

namespace detail {
template <class T>
__global__ void __launch_bounds__(256)
    squared_norm_kernel(const T* x, std::int64_t count, std::int64_t chunk, double* sums) {
  wait_for_previous_kernels();
  __shared__ double partial[8];
  const std::int64_t begin = std::int64_t{blockIdx.x} * chunk, end = min(count, begin + chunk);
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double v = static_cast<double>(x[i]);
    sum += v * v;
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// to[0] = the sum of `count` values, by one block of 256 threads.
template <class Value>
__global__ void __launch_bounds__(256) add_up_kernel(const Value* values, std::int64_t count, Value* to) {
  wait_for_previous_kernels();
  __shared__ Value partial[8];
  Value sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += values[i];
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) to[0] = sum;
}
}  // namespace detail

template <class T>
struct kernel<squared_norm<T, space::device>, exec::cuda> {
  using op = squared_norm<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double, space::device>& sums) {
    p.launch("squared_norm", detail::squared_norm_kernel<T>, dim3(static_cast<unsigned>(sums.extent[0])), 256,
             0, in.x.data, in.x.extent[0], op::chunk, sums.data);
    p.launch("squared_norm", detail::add_up_kernel<double>, 1, 256, 0, sums.data, sums.extent[0],
             out.sum.data);
  }
};

}  // namespace dsv4
