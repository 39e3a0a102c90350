// SPDX-License-Identifier: Apache-2.0
/// Root-mean-square normalisation on the GPU: one warp per short row, one block per long one.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>
#include <dsv4/ops/rms_norm.hpp>

namespace dsv4 {

namespace detail {
/// 1 / sqrt(mean x^2 + eps) of a row that `Threads` threads share.
template <class T, int N, int Threads>
__device__ __forceinline__ accumulator<T> rms_factor(const pack<T, N>* row, std::int64_t packs, int lane,
                                                     accumulator<T> width, accumulator<T> eps,
                                                     accumulator<T>* partial) {
  using A = accumulator<T>;
  A squares = 0;
  for (std::int64_t i = lane; i < packs; i += Threads) {
    const pack<T, N> v = row[i];
#pragma unroll
    for (int j = 0; j < N; ++j) squares += widened<A>(v.value[j]) * widened<A>(v.value[j]);
  }
  squares = Threads == 32 ? warp_sum(squares) : block_sum(squares, partial);
  return A(1) / sqrt(squares / width + eps);
}
template <class T, int N>
__device__ __forceinline__ pack<T, N> normalised(pack<T, N> v, accumulator<T> r, const pack<T, N>* weight) {
  using A = accumulator<T>;
  if (weight) {
    const pack<T, N> w = *weight;
#pragma unroll
    for (int j = 0; j < N; ++j) v.value[j] = narrowed<T>(widened<A>(v.value[j]) * r * widened<A>(w.value[j]));
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) v.value[j] = narrowed<T>(widened<A>(v.value[j]) * r);
  }
  return v;
}

/// `Threads` threads share a row; a block holds 256 / Threads rows. The second pass finds the row in L1.
template <class T, int N, int Threads>
__global__ void __launch_bounds__(256)
    rms_norm_kernel(matrix_view<const T, space::device> x, vector_view<const T, space::device> weight,
                    double eps, matrix_view<T, space::device> y) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  __shared__ A partial[8];
  const std::int64_t row = std::int64_t{blockIdx.x} * (256 / Threads) + threadIdx.x / Threads;
  if (row >= x.extent[0]) return;  // whole warps, and only where a row is a warp's
  const int lane = static_cast<int>(threadIdx.x) % Threads;
  const std::int64_t packs = x.extent[1] / N;
  const P* const from = reinterpret_cast<const P*>(x.data + row * x.stride[0]);
  const P* const scale = reinterpret_cast<const P*>(weight.data);
  P* const to = reinterpret_cast<P*>(y.data + row * y.stride[0]);
  const A r =
      rms_factor<T, N, Threads>(from, packs, lane, static_cast<A>(x.extent[1]), static_cast<A>(eps), partial);
  for (std::int64_t i = lane; i < packs; i += Threads)
    to[i] = normalised<T, N>(from[i], r, scale ? &scale[i] : nullptr);
}

/// Per row r = 1 / sqrt(mean x^2 + eps) and r^3 mean(dy w x). One block per row.
template <class T>
__global__ void __launch_bounds__(256)
    rms_norm_statistics_kernel(matrix_view<const T, space::device> x,
                               vector_view<const T, space::device> weight,
                               matrix_view<const T, space::device> dy, double eps, accumulator<T>* r,
                               accumulator<T>* slope) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A partial[8];
  const std::int64_t t = blockIdx.x, width = x.extent[1];
  A squares = 0, dot = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const A v = widened<A>(x(t, i)), d = widened<A>(dy(t, i));
    squares += v * v;
    dot += v * (weight.data ? d * widened<A>(weight(i)) : d);
  }
  squares = block_sum(squares, partial);
  dot = block_sum(dot, partial);
  if (threadIdx.x > 0) return;
  const A n = static_cast<A>(width), own = A(1) / sqrt(squares / n + static_cast<A>(eps));
  r[t] = own, slope[t] = own * own * own * dot / n;
}

template <class T>
__global__ void __launch_bounds__(256)
    rms_norm_backward_kernel(matrix_view<const T, space::device> x,
                             vector_view<const T, space::device> weight,
                             matrix_view<const T, space::device> dy, const accumulator<T>* r,
                             const accumulator<T>* slope, matrix_view<T, space::device> dx) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t width = x.extent[1];
  for (std::int64_t j = global_thread(); j < x.extent[0] * width; j += global_threads()) {
    const std::int64_t t = j / width, i = j % width;
    const A g = widened<A>(dy(t, i)) * (weight.data ? widened<A>(weight(i)) : A(1));
    dx(t, i) = narrowed<T>(r[t] * g - slope[t] * widened<A>(x(t, i)));
  }
}

/// dy x r: what a row adds to the gradient of the weight.
template <class T>
struct rms_norm_weight_term {
  matrix_view<const T, space::device> x, dy;
  const accumulator<T>* r;
  __device__ accumulator<T> operator()(std::int64_t t, std::int64_t i) const {
    using A = accumulator<T>;
    return widened<A>(dy(t, i)) * widened<A>(x(t, i)) * r[t];
  }
};
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

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    using A = detail::accumulator<T>;
    const workspace_scope scope(w);
    const std::int64_t rows = in.x.extent[0];
    A* const r = take<A>(w, rows).data;
    A* const slope = take<A>(w, rows).data;
    p.launch("rms_norm", detail::rms_norm_statistics_kernel<T>, dim3(static_cast<unsigned>(rows)),
             in.x.extent[1] <= 512 ? 64 : 256, 0, in.x, in.weight, up.dy, in.eps, r, slope);
    // The weight's gradient first: dx may be dy.
    if (g.dweight.data)
      detail::add_row_sums(p, "rms_norm", w, detail::rms_norm_weight_term<T>{in.x, up.dy, r}, rows,
                           g.dweight);
    if (g.dx.data)
      p.launch("rms_norm", detail::rms_norm_backward_kernel<T>, detail::loop_grid(p, in.x.size(), 256), 256,
               0, in.x, in.weight, up.dy, r, slope, g.dx);
  }
};

}  // namespace dsv4
