// SPDX-License-Identifier: Apache-2.0
/// Gradients of sparse attention on the GPU, for any type and width. The gradient of a key is summed by the
/// one block that owns it, over the queries that saw it, in order.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>
#include <dsv4/ops/cuda/sparse_attention_backward_sm90.cuh>
#include <dsv4/ops/sparse_attention.hpp>

namespace dsv4::detail {

template <class T>
using attention_op = sparse_attention<T, space::device>;

/// delta[t, h] = do . o. One warp each.
template <class T>
__global__ void __launch_bounds__(256)
    attention_delta_kernel(tensor_view<const T, space::device> o, tensor_view<const T, space::device> do_,
                           accumulator<T>* delta) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t i = std::int64_t{blockIdx.x} * 8 + threadIdx.x / 32, heads = o.extent[1];
  if (i >= o.extent[0] * heads) return;
  A sum = 0;
  for (std::int64_t c = threadIdx.x % 32; c < o.extent[2]; c += 32)
    sum += widened<A>(o(i / heads, i % heads, c)) * widened<A>(do_(i / heads, i % heads, c));
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[i] = sum;
}

/// What query t adds to the gradient of the sink of head h.
template <class T, class L>
struct sink_term {
  vector_view<const T, space::device> sinks;
  matrix_view<L, space::device> lse;
  const accumulator<T>* delta;
  __device__ accumulator<T> operator()(std::int64_t t, std::int64_t h) const {
    using A = accumulator<T>;
    return -exp(widened<A>(sinks(h)) - widened<A>(lse(t, h))) * delta[t * lse.extent[1] + h];
  }
};

/// seen[e, t / 32] has bit t % 32 where query t selected entry e.
template <class T>
__global__ void __launch_bounds__(256)
    attention_seen_kernel(matrix_view<const std::int32_t, space::device> selected, std::int64_t entries,
                          std::int64_t words, unsigned* seen) {
  wait_for_previous_kernels();
  const std::int64_t k = selected.extent[1];
  for (std::int64_t i = global_thread(); i < selected.extent[0] * k; i += global_threads()) {
    const std::int64_t t = i / k, e = selected(t, i % k);
    if (e >= 0 && e < entries) atomicOr(&seen[e * words + t / 32], 1u << (t % 32));
  }
}

/// Lane l's channels l + 32 i of a row.
template <class A, int Each, class T>
__device__ void load_lane(const T* row, std::int64_t width, A (&to)[Each]) {
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    const int c = static_cast<int>(threadIdx.x % 32) + 32 * i;
    to[i] = c < width ? widened<A>(row[c]) : A(0);
  }
}
template <class A, int Each>
__device__ A lane_dot(const A (&a)[Each], const A (&b)[Each]) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) sum += a[i] * b[i];
  return warp_sum(sum);
}

/// dq, one warp per query and head.
template <class T, class L, int Each>
__global__ void __launch_bounds__(256)
    attention_dq_kernel(typename attention_op<T>::inputs in, matrix_view<L, space::device> lse,
                        tensor_view<const T, space::device> do_, const accumulator<T>* delta,
                        tensor_view<T, space::device> dq) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t heads = in.q.extent[1], width = in.q.extent[2];
  const std::int64_t t = blockIdx.x, h = std::int64_t{blockIdx.y} * 8 + threadIdx.x / 32;
  if (h >= heads) return;
  const std::int64_t position = in.first_position + t,
                     oldest = max(std::int64_t{0}, position - in.window + 1), near = position - oldest + 1;
  const std::int64_t far = in.selected.data ? in.selected.extent[1]
                           : in.ratio > 0   ? (position + 1) / in.ratio
                                            : 0;
  const A scale = static_cast<A>(in.scale), shift = widened<A>(lse(t, h)), mean = delta[t * heads + h];
  A q[Each], d[Each], sum[Each] = {};
  load_lane(&in.q(t, h, 0), width, q);
  load_lane(&do_(t, h, 0), width, d);
  for (std::int64_t j = 0; j < near + far; ++j) {
    const std::int64_t entry = j < near ? 0 : in.selected.data ? in.selected(t, j - near) : j - near;
    if (entry < 0) continue;
    A key[Each];
    load_lane(j < near ? &in.local(oldest + j - in.first_local, 0) : &in.compressed(entry, 0), width, key);
    const A p = exp(scale * lane_dot(q, key) - shift), ds = p * (lane_dot(d, key) - mean);
#pragma unroll
    for (int i = 0; i < Each; ++i) sum[i] += ds * key[i];
  }
#pragma unroll
  for (int i = 0; i < Each; ++i) {
    const int c = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (c < width) dq(t, h, c) = narrowed<T>(scale * sum[i]);
  }
}

/// The gradient of one key, one block. Queries [begin, end) are asked whether they saw it: all of them where
/// `seen` is null. A warp has every eighth head.
template <class T, class L, int Each>
__device__ void attention_dkey(const typename attention_op<T>::inputs& in,
                               const matrix_view<L, space::device>& lse,
                               const tensor_view<const T, space::device>& do_, const accumulator<T>* delta,
                               const T* key_row, std::int64_t begin, std::int64_t end, const unsigned* seen,
                               T* to) {
  using A = accumulator<T>;
  __shared__ A sums[8][32 * Each];
  const std::int64_t heads = in.q.extent[1], width = in.q.extent[2];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const A scale = static_cast<A>(in.scale);
  A key[Each], sum[Each] = {};
  load_lane(key_row, width, key);
  for (std::int64_t t = begin; t < end; ++t) {
    if (seen && !(seen[t / 32] >> (t % 32) & 1)) continue;
    for (std::int64_t h = warp; h < heads; h += 8) {
      A q[Each], d[Each];
      load_lane(&in.q(t, h, 0), width, q);
      load_lane(&do_(t, h, 0), width, d);
      const A p = exp(scale * lane_dot(q, key) - widened<A>(lse(t, h)));
      const A ds = scale * p * (lane_dot(d, key) - delta[t * heads + h]);
#pragma unroll
      for (int i = 0; i < Each; ++i) sum[i] += p * d[i] + ds * q[i];
    }
  }
#pragma unroll
  for (int i = 0; i < Each; ++i) sums[warp][lane + 32 * i] = sum[i];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < width; c += 256) {
    A all = 0;
    for (int i = 0; i < 8; ++i) all += sums[i][c];
    to[c] = narrowed<T>(all);
  }
}

template <class T, class L, int Each>
__global__ void __launch_bounds__(256)
    attention_dlocal_kernel(typename attention_op<T>::inputs in, matrix_view<L, space::device> lse,
                            tensor_view<const T, space::device> do_, const accumulator<T>* delta,
                            matrix_view<T, space::device> dlocal) {
  wait_for_previous_kernels();
  const std::int64_t r = blockIdx.x, position = in.first_local + r;
  // Seen by the queries at positions [position, position + window).
  const std::int64_t begin = max(std::int64_t{0}, position - in.first_position),
                     end = min(in.q.extent[0], position + in.window - in.first_position);
  attention_dkey<T, L, Each>(in, lse, do_, delta, &in.local(r, 0), begin, end, nullptr, &dlocal(r, 0));
}

template <class T, class L, int Each>
__global__ void __launch_bounds__(256)
    attention_dcompressed_kernel(typename attention_op<T>::inputs in, matrix_view<L, space::device> lse,
                                 tensor_view<const T, space::device> do_, const accumulator<T>* delta,
                                 const unsigned* seen, std::int64_t words,
                                 matrix_view<T, space::device> dcompressed) {
  wait_for_previous_kernels();
  const std::int64_t e = blockIdx.x;
  // Complete from position (e + 1) ratio - 1 on; with a selection the bits say it all.
  const std::int64_t first = in.ratio > 0 && !seen ? (e + 1) * in.ratio - 1 - in.first_position : 0;
  const std::int64_t end = seen || in.ratio > 0 ? in.q.extent[0] : 0;
  attention_dkey<T, L, Each>(in, lse, do_, delta, &in.compressed(e, 0), max(std::int64_t{0}, first), end,
                             seen ? seen + e * words : nullptr, &dcompressed(e, 0));
}

template <class T>
struct attention_backward {
  using op = attention_op<T>;
  using A = accumulator<T>;

  static void run(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                  const typename op::saved& kept, const typename op::upstream& up,
                  const typename op::gradients& g) {
    using L = typename std::remove_cvref_t<decltype(kept.lse)>::value_type;
    constexpr const char* where = "sparse_attention";
    const workspace_scope scope(w);
    const std::int64_t rows = in.q.extent[0], heads = in.q.extent[1], width = in.q.extent[2];
    expect(width <= 512, where, "q width", "at most 512", width);
    A* const delta = take<A>(w, rows, heads).data;
    p.launch(where, attention_delta_kernel<T>, dim3(static_cast<unsigned>(ceil_div(rows * heads, 8))), 256, 0,
             kept.o, up.do_, delta);
    if (g.dsinks.data) add_row_sums(p, where, w, sink_term<T, L>{in.sinks, kept.lse, delta}, rows, g.dsinks);
    [[maybe_unused]] bool fits = false;
    if constexpr (std::is_same_v<T, bf16>) {
      fits = attention_backward_fits_sm90<L>(p, in, up.do_, g);
      if (fits && p.sums() == exec::sum_order::any && (g.dlocal.data || g.dcompressed.data)) {
        launch_attention_dq_sm90(p, w, in, kept.lse, up.do_, delta, g, true);
        return;
      }
    }
    unsigned* seen = nullptr;
    const std::int64_t entries = g.dcompressed.extent[0], words = ceil_div(rows, 32);
    if (in.selected.data && entries > 0) {
      const auto bits = take<unsigned>(w, entries, words);
      clear(p, where, bits);
      seen = bits.data;
      p.launch(where, attention_seen_kernel<T>, loop_grid(p, in.selected.size(), 256), 256, 0, in.selected,
               entries, words, seen);
    }
    if constexpr (std::is_same_v<T, bf16>)
      if (fits) {
        launch_attention_backward_sm90(p, w, in, kept.lse, up.do_, delta, seen, words, g);
        return;
      }
    if (width <= 64)
      products<L, 2>(p, in, kept.lse, up.do_, delta, seen, words, g);
    else if (width <= 128)
      products<L, 4>(p, in, kept.lse, up.do_, delta, seen, words, g);
    else
      products<L, 16>(p, in, kept.lse, up.do_, delta, seen, words, g);
  }

 private:
  template <class L, int Each>
  static void products(const exec::cuda& p, const typename op::inputs& in,
                       const matrix_view<L, space::device>& lse,
                       const tensor_view<const T, space::device>& do_, const A* delta, const unsigned* seen,
                       std::int64_t words, const typename op::gradients& g) {
    constexpr const char* where = "sparse_attention";
    if (g.dq.data)
      p.launch(
          where, attention_dq_kernel<T, L, Each>,
          dim3(static_cast<unsigned>(in.q.extent[0]), static_cast<unsigned>(ceil_div(in.q.extent[1], 8))),
          256, 0, in, lse, do_, delta, g.dq);
    if (g.dlocal.data)
      p.launch(where, attention_dlocal_kernel<T, L, Each>, dim3(static_cast<unsigned>(g.dlocal.extent[0])),
               256, 0, in, lse, do_, delta, g.dlocal);
    if (g.dcompressed.data)
      p.launch(where, attention_dcompressed_kernel<T, L, Each>,
               dim3(static_cast<unsigned>(g.dcompressed.extent[0])), 256, 0, in, lse, do_, delta, seen, words,
               g.dcompressed);
  }
};

}  // namespace dsv4::detail
