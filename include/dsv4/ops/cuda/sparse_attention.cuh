// SPDX-License-Identifier: Apache-2.0
/// Sparse attention on the GPU: on the matrix units where they can, else one warp per query and head.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sparse_attention_backward.cuh>
#include <dsv4/ops/cuda/sparse_attention_sm90.cuh>
#include <dsv4/ops/sparse_attention.hpp>

namespace dsv4 {

namespace detail {
inline constexpr int attention_warps = 8;

/// Lane l holds the channels l + 32 i, i < Each. Scores pass through a running maximum; keys are read once,
/// `Batch` at a time, and stay in L1 for the other heads of the block.
template <class T, class L, int Each>
__global__ void __launch_bounds__(32 * attention_warps)
    sparse_attention_kernel(typename sparse_attention<T, space::device>::inputs in,
                            tensor_view<T, space::device> o, matrix_view<L, space::device> lse) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  constexpr int Batch = sizeof(A) == 8 ? 2 : 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t heads = in.q.extent[1], width = in.q.extent[2];
  const std::int64_t t = blockIdx.x, h = std::int64_t{blockIdx.y} * attention_warps + threadIdx.x / 32;
  if (h >= heads) return;
  const std::int64_t position = in.first_position + t;
  const std::int64_t oldest = max(std::int64_t{0}, position - in.window + 1), near = position - oldest + 1;
  const std::int64_t far = in.selected.data ? in.selected.extent[1]
                           : in.ratio > 0   ? (position + 1) / in.ratio
                                            : 0;
  const A scale = static_cast<A>(in.scale);
  A q[Each], sum[Each] = {};
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    const int c = lane + 32 * i;
    q[i] = c < width ? widened<A>(in.q(t, h, c)) * scale : A(0);
  }
  // The sink is a key without a value.
  A top = widened<A>(in.sinks(h)), weight = 1;
  for (std::int64_t base = 0; base < near + far; base += Batch) {
    A key[Batch][Each], score[Batch];
    bool valid[Batch];
#pragma unroll
    for (int b = 0; b < Batch; ++b) {
      const std::int64_t j = base + b;
      const T* row = nullptr;
      if (j < near) {
        row = in.local.data + (oldest + j - in.first_local) * in.local.stride[0];
      } else if (j < near + far) {
        const std::int64_t entry = in.selected.data ? in.selected(t, j - near) : j - near;
        if (entry >= 0) row = in.compressed.data + entry * in.compressed.stride[0];
      }
      valid[b] = row != nullptr;
      score[b] = 0;
#pragma unroll
      for (int i = 0; i < Each; ++i) {
        const int c = lane + 32 * i;
        key[b][i] = valid[b] && c < width ? widened<A>(row[c]) : A(0);
        score[b] += q[i] * key[b][i];
      }
    }
    A largest = top;
#pragma unroll
    for (int b = 0; b < Batch; ++b) {
      score[b] = warp_sum(score[b]);
      if (valid[b] && score[b] > largest) largest = score[b];
    }
    const A old = exp(top - largest);
    top = largest;
    weight *= old;
    A p[Batch];
#pragma unroll
    for (int b = 0; b < Batch; ++b) {
      p[b] = valid[b] ? exp(score[b] - top) : A(0);
      weight += p[b];
    }
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      sum[i] *= old;
#pragma unroll
      for (int b = 0; b < Batch; ++b) sum[i] += p[b] * key[b][i];
    }
  }
  if (lse.data && lane == 0) lse(t, h) = static_cast<L>(top + log(weight));
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    const int c = lane + 32 * i;
    if (c < width) o(t, h, c) = narrowed<T>(sum[i] / weight);
  }
}
}  // namespace detail

template <class T>
struct kernel<sparse_attention<T, space::device>, exec::cuda> {
  using op = sparse_attention<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out,
                      const typename op::saved& keep) {
    if constexpr (std::is_same_v<T, bf16>)
      if (detail::launch_sparse_attention_sm90(p, in, out, keep.lse)) return;
    portable(p, in, out, keep);
  }

  /// The kernel for any type and device, also to compare the fast one with.
  static void portable(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out,
                       const typename op::saved& keep) {
    using L = typename std::remove_cvref_t<decltype(keep.lse)>::value_type;
    const std::int64_t width = in.q.extent[2];
    expect(width <= 512, "sparse_attention", "q width", "at most 512", width);
    const dim3 grid(static_cast<unsigned>(in.q.extent[0]),
                    static_cast<unsigned>(detail::ceil_div(in.q.extent[1], detail::attention_warps)));
    const auto run = [&](auto kernel) {
      p.launch("sparse_attention", kernel, grid, 32 * detail::attention_warps, 0, in, out.o, keep.lse);
    };
    if (width <= 64)
      run(detail::sparse_attention_kernel<T, L, 2>);
    else if (width <= 128)
      run(detail::sparse_attention_kernel<T, L, 4>);
    else
      run(detail::sparse_attention_kernel<T, L, 16>);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    detail::attention_backward<T>::run(p, w, in, kept, up, g);
  }
};

}  // namespace dsv4
