// SPDX-License-Identifier: Apache-2.0
/// Rotary position embedding on the GPU: one block per token, its angles computed once for all heads.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/rope.hpp>

namespace dsv4 {

namespace detail {
/// x = `from` rotated; they may be the same. Angles are products in double, as everywhere: at position 10^6 a
/// float's angle is off by 0.03.
template <class T>
__global__ void __launch_bounds__(128)
    rope_kernel(rope_frequencies f, std::int64_t first, std::int64_t step, bool inverse,
                tensor_view<const T, space::device> from, tensor_view<T, space::device> x) {
  using A = accumulator<T>;
  __shared__ A cosine[64], sine[64];
  const std::int64_t t = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < f.pairs; i += static_cast<int>(blockDim.x)) {
    double s, c;
    sincos(static_cast<double>(first + t * step) * f.value[i], &s, &c);
    cosine[i] = static_cast<A>(c), sine[i] = static_cast<A>(inverse ? -s : s);
  }
  __syncthreads();
  const std::int64_t skip = x.extent[2] - 2 * f.pairs, count = x.extent[1] * f.pairs;
  if (from.data != x.data)
    for (std::int64_t j = threadIdx.x; j < x.extent[1] * skip; j += blockDim.x)
      x(t, j / skip, j % skip) = from(t, j / skip, j % skip);
  for (std::int64_t j = threadIdx.x; j < count; j += blockDim.x) {
    const int i = static_cast<int>(j % f.pairs);
    const std::int64_t h = j / f.pairs, c = skip + 2 * i;
    const A e = widened<A>(from(t, h, c)), o = widened<A>(from(t, h, c + 1));
    x(t, h, c) = narrowed<T>(e * cosine[i] - o * sine[i]);
    x(t, h, c + 1) = narrowed<T>(e * sine[i] + o * cosine[i]);
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
    p.launch("rope", detail::rope_kernel<T>, dim3(static_cast<unsigned>(to.extent[0])), threads, 0,
             in.frequencies, in.first_position, in.position_step, inverse, from, to);
  }
};

}  // namespace dsv4
