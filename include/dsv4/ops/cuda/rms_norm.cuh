// SPDX-License-Identifier: Apache-2.0
/// Root-mean-square normalisation on the GPU: one warp per short row, one block per long one.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/rms_norm.hpp>

namespace dsv4 {

namespace detail {
/// `Threads` threads share a row; a block holds 256 / Threads rows. The second pass finds the row in L1.
template <class T, int N, int Threads>
__global__ void __launch_bounds__(256)
    rms_norm_kernel(matrix_view<const T, space::device> x, vector_view<const T, space::device> weight,
                    double eps, matrix_view<T, space::device> y) {
  using A = accumulator<T>;
  using P = pack<T, N>;
  __shared__ A partial[8];
  const std::int64_t row = std::int64_t{blockIdx.x} * (256 / Threads) + threadIdx.x / Threads;
  if (row >= x.extent[0]) return;  // whole warps, and only where a row is a warp's
  const int lane = static_cast<int>(threadIdx.x) % Threads;
  const std::int64_t packs = x.extent[1] / N;
  const P* from = reinterpret_cast<const P*>(x.data + row * x.stride[0]);
  A squares = 0;
  for (std::int64_t i = lane; i < packs; i += Threads) {
    const P v = from[i];
#pragma unroll
    for (int j = 0; j < N; ++j) squares += widened<A>(v.value[j]) * widened<A>(v.value[j]);
  }
  squares = Threads == 32 ? warp_sum(squares) : block_sum(squares, partial);
  const A r = A(1) / sqrt(squares / static_cast<A>(x.extent[1]) + static_cast<A>(eps));
  P* to = reinterpret_cast<P*>(y.data + row * y.stride[0]);
  const P* scale = reinterpret_cast<const P*>(weight.data);
  for (std::int64_t i = lane; i < packs; i += Threads) {
    P v = from[i];
    if (weight.data) {
      const P w = scale[i];
#pragma unroll
      for (int j = 0; j < N; ++j)
        v.value[j] = narrowed<T>(widened<A>(v.value[j]) * r * widened<A>(w.value[j]));
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) v.value[j] = narrowed<T>(widened<A>(v.value[j]) * r);
    }
    to[i] = v;
  }
}
}  // namespace detail

template <class T>
struct kernel<rms_norm<T, space::device>, exec::cuda> {
  using op = rms_norm<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    const bool wide =
        detail::all_vectorisable(in.x, out.y) && (!in.weight.data || detail::vectorisable(in.weight));
    const auto run = [&](auto kernel, int rows_per_block) {
      p.launch("rms_norm", kernel,
               dim3(static_cast<unsigned>(detail::ceil_div(in.x.extent[0], rows_per_block))), 256, 0, in.x,
               in.weight, in.eps, out.y);
    };
    // A warp walks up to 16 vectors per lane before a whole block is worth its two barriers.
    const bool is_short = in.x.extent[1] <= (wide ? 32 * 8 * n : 1024);
    if (wide)
      is_short ? run(detail::rms_norm_kernel<T, n, 32>, 8) : run(detail::rms_norm_kernel<T, n, 256>, 1);
    else
      is_short ? run(detail::rms_norm_kernel<T, 1, 32>, 8) : run(detail::rms_norm_kernel<T, 1, 256>, 1);
  }
};

}  // namespace dsv4
