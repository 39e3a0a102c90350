// SPDX-License-Identifier: Apache-2.0
/// Cross-entropy from hidden states on the GPU: logits exist for a chunk of rows at a time, and are made
/// again for the gradients. A kernel cannot throw: a target beyond the vocabulary gives a loss of NaN.
#pragma once

#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/linear.cuh>

namespace dsv4 {

namespace detail {
/// One block per row: lse = log sum e^z, loss = lse - z[target].
template <class T>
__global__ void __launch_bounds__(256)
    cross_entropy_kernel(matrix_view<const accumulator<T>, space::device> z,
                         vector_view<const std::int32_t, space::device> targets,
                         vector_view<T, space::device> loss, vector_view<T, space::device> all_lse) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A partial[8], tops[8];
  const std::int64_t t = blockIdx.x, vocabulary = z.extent[1];
  A top = -infinity<A>;
  for (std::int64_t v = threadIdx.x; v < vocabulary; v += 256) top = z(t, v) > top ? z(t, v) : top;
  top = warp_max(top);
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
  __syncthreads();
  for (int i = 0; i < 8; ++i) top = tops[i] > top ? tops[i] : top;
  A sum = 0;
  for (std::int64_t v = threadIdx.x; v < vocabulary; v += 256) sum += exp(z(t, v) - top);
  sum = block_sum(sum, partial);
  if (threadIdx.x > 0) return;
  const A lse = top + log(sum);
  if (all_lse.data) all_lse(t) = narrowed<T>(lse);
  const std::int64_t target = targets(t);
  loss(t) = narrowed<T>(target < 0 ? A(0) : target < vocabulary ? lse - z(t, target) : not_a_number<A>);
}

/// dz = dloss (e^(z - lse) - [target]), 0 in masked rows; the sum again from z itself, so that weights add up
/// to 1 where lse was rounded. One block per row; dz may lie where z does.
template <class T>
__global__ void __launch_bounds__(256)
    cross_entropy_backward_kernel(matrix_view<const accumulator<T>, space::device> z,
                                  vector_view<const std::int32_t, space::device> targets,
                                  vector_view<const T, space::device> lse,
                                  vector_view<const T, space::device> dloss,
                                  matrix_view<T, space::device> dz) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A partial[8];
  const std::int64_t t = blockIdx.x, target = targets(t);
  const A shift = widened<A>(lse(t)), d = widened<A>(dloss(t));
  A sum = 0;
  if (!std::is_same_v<T, A>)
    for (std::int64_t v = threadIdx.x; v < z.extent[1]; v += 256) sum += exp(z(t, v) - shift);
  const A whole = std::is_same_v<T, A> ? A(1) : block_sum(sum, partial);
  for (std::int64_t v = threadIdx.x; v < z.extent[1]; v += 256)
    dz(t, v) =
        narrowed<T>(target < 0 ? A(0) : d * (exp(z(t, v) - shift) / whole - (v == target ? A(1) : A(0))));
}
}  // namespace detail

template <class T, class W>
struct kernel<cross_entropy<T, space::device, W>, exec::cuda> {
  using op = cross_entropy<T, space::device, W>;
  using A = detail::accumulator<T>;

  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out, const typename op::saved& keep) {
    const workspace_scope scope(w);
    const std::int64_t rows = in.hidden.extent[0], chunk = chunk_rows(in);
    const auto z = take<A>(w, chunk, in.head.extent[0]);
    for (std::int64_t first = 0; first < rows; first += chunk) {
      const std::int64_t n = std::min(chunk, rows - first);
      logits(p, in, first, n, z);
      p.launch("cross_entropy", detail::cross_entropy_kernel<T>, dim3(static_cast<unsigned>(n)), 256, 0, z,
               in.targets.rows(first, n), out.loss.rows(first, n),
               keep.lse.data ? keep.lse.rows(first, n) : keep.lse);
    }
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    using product = linear<T, space::device, W>;
    const workspace_scope scope(w);
    const std::int64_t rows = in.hidden.extent[0], vocabulary = in.head.extent[0], chunk = chunk_rows(in);
    const auto z = take<A>(w, chunk, vocabulary);
    matrix_view<T, space::device> dz;
    if constexpr (std::is_same_v<T, A>)
      dz = z;
    else
      dz = take<T>(w, chunk, vocabulary);
    for (std::int64_t first = 0; first < rows; first += chunk) {
      const std::int64_t n = std::min(chunk, rows - first);
      logits(p, in, first, n, z);
      p.launch("cross_entropy", detail::cross_entropy_backward_kernel<T>, dim3(static_cast<unsigned>(n)), 256,
               0, z, in.targets.rows(first, n), kept.lse.rows(first, n), up.dloss.rows(first, n), dz);
      kernel<product, exec::cuda>::backward(p, w, {in.hidden.rows(first, n), in.head}, {dz.rows(0, n)},
                                            {g.dhidden.data ? g.dhidden.rows(first, n) : g.dhidden, g.dhead});
    }
  }

 private:
  /// Chunks depend on the vocabulary alone: the order of sums does too.
  static std::int64_t chunk_rows(const typename op::inputs& in) {
    const std::int64_t most = (std::int64_t{1} << 25) / std::max<std::int64_t>(1, in.head.extent[0]);
    return std::min(std::max<std::int64_t>(most, 64), std::max<std::int64_t>(in.hidden.extent[0], 1));
  }
  static void logits(const exec::cuda& p, const typename op::inputs& in, std::int64_t first, std::int64_t n,
                     const matrix_view<A, space::device>& z) {
    kernel<linear<A, space::device, W, T>, exec::cuda>::forward(p, {in.hidden.rows(first, n), in.head},
                                                                {z.rows(0, n)});
  }
};

}  // namespace dsv4
