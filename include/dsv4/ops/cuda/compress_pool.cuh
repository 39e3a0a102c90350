// SPDX-License-Identifier: Apache-2.0
/// Gated pooling on the GPU: a thread per channel, and slots that share a long group's tokens.
#pragma once

#include <dsv4/ops/compress_pool.hpp>
#include <dsv4/ops/cuda/common.cuh>

namespace dsv4 {

namespace detail {
/// blockDim = (32 channels, Slots); slot s takes every Slots-th token with a running maximum, and the slots
/// are joined in their order.
template <class T, int Slots>
__global__ void __launch_bounds__(32 * Slots)
    compress_pool_kernel(matrix_view<const T, space::device> kv, matrix_view<const T, space::device> gate,
                         matrix_view<const T, space::device> bias, std::int64_t first_position,
                         std::int64_t first_entry, bool overlap, matrix_view<T, space::device> y) {
  using A = accumulator<T>;
  struct part {
    A top, sum, value;
  };
  __shared__ part parts[Slots][32];
  const std::int64_t m = bias.extent[0], width = y.extent[1];
  const std::int64_t f = std::int64_t{blockIdx.x} * 32 + threadIdx.x;
  const bool inside = f < width;
  for (std::int64_t i = blockIdx.y; i < y.extent[0]; i += gridDim.y) {
    const std::int64_t start = (first_entry + i) * m;  // position of the group's first token
    const std::int64_t begin = overlap && start > 0 ? start - m : start;
    part own{-infinity<A>, 0, 0};
    for (std::int64_t t = begin + threadIdx.y; inside && t < start + m; t += Slots) {
      const std::int64_t channel = overlap && t >= start ? width + f : f;
      const A logit = widened<A>(gate(t - first_position, channel)) + widened<A>(bias(t % m, channel));
      const A top = logit > own.top ? logit : own.top;
      const A old = exp(own.top - top), w = exp(logit - top);
      own = {top, own.sum * old + w, own.value * old + w * widened<A>(kv(t - first_position, channel))};
    }
    if constexpr (Slots > 1) {
      parts[threadIdx.y][threadIdx.x] = own;
      __syncthreads();
      if (threadIdx.y == 0) {
        for (int s = 1; s < Slots; ++s) {
          const part next = parts[s][threadIdx.x];
          if (next.sum == A(0)) continue;  // no tokens
          const A top = next.top > own.top ? next.top : own.top;
          const A a = exp(own.top - top), b = exp(next.top - top);
          own = {top, own.sum * a + next.sum * b, own.value * a + next.value * b};
        }
      }
      __syncthreads();
    }
    if (inside && threadIdx.y == 0) y(i, f) = narrowed<T>(own.value / own.sum);
  }
}
}  // namespace detail

template <class T>
struct kernel<compress_pool<T, space::device>, exec::cuda> {
  using op = compress_pool<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const dim3 grid(static_cast<unsigned>(detail::ceil_div(out.y.extent[1], 32)),
                    static_cast<unsigned>(std::min<std::int64_t>(out.y.extent[0], 65535)));
    const auto run = [&](auto kernel, unsigned slots) {
      p.launch("compress_pool", kernel, grid, dim3(32, slots), 0, in.kv, in.gate, in.bias, in.first_position,
               in.first_entry, in.overlap, out.y);
    };
    if (in.bias.extent[0] >= 16)
      run(detail::compress_pool_kernel<T, 8>, 8);
    else
      run(detail::compress_pool_kernel<T, 1>, 1);
  }
};

}  // namespace dsv4
