// SPDX-License-Identifier: Apache-2.0
/// Normalisation and rotation of heads on the GPU: a warp per head.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/rms_norm.cuh>
#include <dsv4/ops/cuda/rope.cuh>
#include <dsv4/ops/norm_rope.hpp>

namespace dsv4 {

namespace detail {
/// Block (token, heads), whose first warps compute the token's angles for all. The normalised row is rounded
/// before it is rotated, as between the single ops.
template <class T, int N>
__global__ void __launch_bounds__(256)
    norm_rope_kernel(tensor_view<const T, space::device> x, vector_view<const T, space::device> weight,
                     double eps, rope_frequencies f, std::int64_t first, std::int64_t step,
                     tensor_view<T, space::device> y) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  __shared__ A cosine[64], sine[64];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = blockIdx.x, h = (std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x) / 32,
                     width = x.extent[2];
  for (int i = static_cast<int>(threadIdx.x); i < f.pairs; i += static_cast<int>(blockDim.x))
    rope_angle(f, first + t * step, i, false, cosine[i], sine[i]);
  __syncthreads();
  if (h >= x.extent[1]) return;
  const int packs = static_cast<int>(width) / N, skip = static_cast<int>(width) - 2 * f.pairs;
  const P* const from = reinterpret_cast<const P*>(&x(t, h, 0));
  const P* const scale = reinterpret_cast<const P*>(weight.data);
  P* const to = reinterpret_cast<P*>(&y(t, h, 0));
  const A r = rms_factor<T, N, 32>(from, packs, lane, static_cast<A>(width), static_cast<A>(eps), nullptr);
  for (int i = lane; i < packs; i += 32) {
    P v = normalised<T, N>(from[i], r, scale ? &scale[i] : nullptr);
    if (i * N >= skip)
#pragma unroll
      for (int j = 0; j < N; j += 2)
        rotate<T>(v.value[j], v.value[j + 1], cosine[(i * N + j - skip) / 2], sine[(i * N + j - skip) / 2]);
    to[i] = v;
  }
}
}  // namespace detail

template <class T>
inline constexpr bool has_fused_kernel<norm_rope<T, space::device>, exec::cuda> = true;

template <class T>
struct kernel<norm_rope<T, space::device>, exec::cuda> {
  using op = norm_rope<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    const std::int64_t heads = in.x.extent[1];
    if (!detail::all_vectorisable(in.x, out.y) || (in.weight.data && !detail::vectorisable(in.weight)) ||
        (in.x.extent[2] - 2 * in.frequencies.pairs) % n != 0)
      return op::by_ops(p, in, out);
    const std::int64_t warps = std::min<std::int64_t>(heads, 8);
    p.launch(
        "norm_rope", detail::norm_rope_kernel<T, n>,
        dim3(static_cast<unsigned>(in.x.extent[0]), static_cast<unsigned>(detail::ceil_div(heads, warps))),
        dim3(static_cast<unsigned>(32 * warps)), 0, in.x, in.weight, in.eps, in.frequencies,
        in.first_position, in.position_step, out.y);
  }
};

}  // namespace dsv4
