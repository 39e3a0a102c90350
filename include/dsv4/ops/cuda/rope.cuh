// SPDX-License-Identifier: Apache-2.0
/// Rotary position embedding on the GPU: one block per token, its angles computed once for all heads, or
/// several blocks where tokens are few.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/rope.hpp>

namespace dsv4 {

namespace detail {
/// How pair i turns at a position. Angles are products in double, as everywhere: at position 10^6 a float's
/// angle is off by 0.03.
template <class A>
__device__ __forceinline__ void rope_angle(const rope_frequencies& f, std::int64_t position, int i,
                                           bool inverse, A& cosine, A& sine) {
  double s, c;
  sincos(static_cast<double>(position) * f.value[i], &s, &c);
  cosine = static_cast<A>(c), sine = static_cast<A>(inverse ? -s : s);
}
template <class T, class A>
__device__ __forceinline__ void rotate(T& even, T& odd, A cosine, A sine) {
  const A e = widened<A>(even), o = widened<A>(odd);
  even = narrowed<T>(e * cosine - o * sine);
  odd = narrowed<T>(e * sine + o * cosine);
}

/// x = `from` rotated; they may be the same. Block (token, heads).
template <class T>
__global__ void __launch_bounds__(128)
    rope_kernel(rope_frequencies f, std::int64_t first, std::int64_t step, bool inverse,
                tensor_view<const T, space::device> from, tensor_view<T, space::device> x) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A cosine[64], sine[64];
  const std::int64_t t = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < f.pairs; i += static_cast<int>(blockDim.x)) {
    rope_angle(f, first + t * step, i, inverse, cosine[i], sine[i]);
  }
  __syncthreads();
  const std::int64_t each = (x.extent[1] + gridDim.y - 1) / gridDim.y, first_head = blockIdx.y * each,
                     heads = min(each, x.extent[1] - first_head), skip = x.extent[2] - 2 * f.pairs;
  if (from.data != x.data)
    for (std::int64_t j = threadIdx.x; j < heads * skip; j += blockDim.x)
      x(t, first_head + j / skip, j % skip) = from(t, first_head + j / skip, j % skip);
  for (std::int64_t j = threadIdx.x; j < heads * f.pairs; j += blockDim.x) {
    const int i = static_cast<int>(j % f.pairs);
    const std::int64_t h = first_head + j / f.pairs, c = skip + 2 * i;
    T even = from(t, h, c), odd = from(t, h, c + 1);
    rotate(even, odd, cosine[i], sine[i]);
    x(t, h, c) = even, x(t, h, c + 1) = odd;
  }
}
}  // namespace detail

template <class T>
struct kernel<rope<T, space::device>, exec::cuda> {
  using op = rope<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    turn(p, in, in.inverse, out.x, out.x);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    turn(p, in, !in.inverse, up.dy, g.dx);
  }

 private:
  static void turn(const exec::cuda& p, const typename op::inputs& in, bool inverse,
                   const tensor_view<const T, space::device>& from, const tensor_view<T, space::device>& to) {
    const int threads = to.extent[1] == 1 ? 32 : 128;
    const std::int64_t parts =
        to.extent[0] < p.device().multiprocessors ? detail::ceil_div(to.extent[1], 4) : 1;
    p.launch("rope", detail::rope_kernel<T>,
             dim3(static_cast<unsigned>(to.extent[0]), static_cast<unsigned>(parts)), threads, 0,
             in.frequencies, in.first_position, in.position_step, inverse, from, to);
  }
};

}  // namespace dsv4
