// SPDX-License-Identifier: Apache-2.0
/// Gradients of hyper-connections on the GPU.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>
#include <dsv4/ops/hyper_connection.hpp>

namespace dsv4::detail {

inline constexpr int most_streams = 16;

/// The threads of a block that have, or wait with those that have, the n x n entries of a Sinkhorn: one warp
/// where that is enough, else all.
struct sinkhorn_threads {
  bool one_warp;
  __device__ explicit sinkhorn_threads(int n) : one_warp(n * n <= 32) {}
  __device__ bool own() const { return !one_warp || threadIdx.x < 32; }
  __device__ __forceinline__ void wait() const {
    if (one_warp)
      __syncwarp();
    else
      __syncthreads();
  }
};

/// What this thread of 256 adds to the sum of the squares of token t's streams.
template <int N, class T>
__device__ accumulator<T> token_squares(const tensor_view<const T, space::device>& x, std::int64_t t) {
  using A = accumulator<T>;
  using P = pack<T, N>;
  A squares = 0;
  const int packs = static_cast<int>(x.extent[2] / N);
  for (std::int64_t i = 0; i < x.extent[1]; ++i) {
    const P* const row = reinterpret_cast<const P*>(x.data + t * x.stride[0] + i * x.stride[1]);
#pragma unroll 4
    for (int c = static_cast<int>(threadIdx.x); c < packs; c += 256) {
      const P v = row[c];
#pragma unroll
      for (int j = 0; j < N; ++j) squares += widened<A>(v.value[j]) * widened<A>(v.value[j]);
    }
  }
  return squares;
}

/// The gradient of Sinkhorn's input by that of its result, thread j n + k holding entry (j, k); see
/// sinkhorn(). Forward leaves each normalisation's output and divisor in `steps`, which holds 2 n n
/// (iterations) numbers; `m` holds n n.
template <class A>
__device__ A sinkhorn_backward(A value, A gradient, A* m, A* steps, int n, int iterations, A eps,
                               const sinkhorn_threads& threads) {
  const int thread = static_cast<int>(threadIdx.x), square = n * n;
  const bool inside = thread < square;
  const int own = inside ? thread : 0, j = own / n, k = own % n;
  // sum over the row or the column of this thread's entry
  const auto line_sum = [&](A v, bool row) {
    if (inside) m[own] = v;
    threads.wait();
    A sum = 0;
    for (int i = 0; i < n; ++i) sum += row ? m[j * n + i] : m[i * n + k];
    threads.wait();
    return sum;
  };
  if (inside) m[own] = value;
  threads.wait();
  A top = m[j * n];
  for (int i = 1; i < n; ++i) top = m[j * n + i] > top ? m[j * n + i] : top;
  threads.wait();
  const A e = exp(value - top), softmax = e / line_sum(e, true);
  A v = softmax + eps;
  const int count = 2 * iterations - 1;  // columns first and last
  for (int step = 0; step < count; ++step) {
    const A kappa = eps + line_sum(v, step % 2 == 1);
    v /= kappa;
    if (inside) steps[step * 2 * square + own] = v, steps[step * 2 * square + square + own] = kappa;
  }
  for (int step = count - 1; step >= 0; --step) {  // each thread reads what it wrote, or nothing
    const A y = inside ? steps[step * 2 * square + own] : A(0),
            kappa = inside ? steps[step * 2 * square + square + own] : A(1);
    gradient = (gradient - line_sum(gradient * y, step % 2 == 1)) / kappa;
  }
  return softmax * (gradient - line_sum(gradient * softmax, true));
}

/// One block per token. dh (N, mixes) and dscale (N, 3) are what the token adds to the gradients of base and
/// scale.
template <class T>
__global__ void __launch_bounds__(256)
    hyper_connection_gates_backward_kernel(typename hyper_connection_gates<T, space::device>::inputs in,
                                           typename hyper_connection_gates<T, space::device>::upstream up,
                                           tensor_view<T, space::device> dx, bool add_to_dx,
                                           matrix_view<T, space::device> dz, accumulator<T>* all_dh,
                                           accumulator<T>* all_dscale) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ A partial[8], m[most_streams * most_streams];
  const std::int64_t t = blockIdx.x, width = in.x.extent[2];
  const int n = static_cast<int>(in.x.extent[1]), mixes = static_cast<int>(in.z.extent[1]),
            own = static_cast<int>(threadIdx.x);
  const A squares = block_sum(token_squares<1>(in.x, t), partial);
  const A count = static_cast<A>(n * width), rho = A(1) / sqrt(squares / count + static_cast<A>(in.norm_eps));
  const auto segment = [&](int row) { return row < n ? 0 : row < 2 * n ? 1 : 2; };
  const auto h = [&](int row) {
    return widened<A>(in.z(t, row)) * rho * widened<A>(in.scale(segment(row))) + widened<A>(in.base(row));
  };
  const auto sigmoid = [](A v) { return A(1) / (A(1) + exp(-v)); };
  A* const dh = all_dh + t * mixes;
  if (own < n) {
    const A s = sigmoid(h(own));
    dh[own] = widened<A>(up.dpre(t, own)) * s * (A(1) - s);
    if (in.scale.extent[0] == 3) {
      const A p = sigmoid(h(n + own));
      dh[n + own] = 2 * widened<A>(up.dpost(t, own)) * p * (A(1) - p);
    }
  }
  const sinkhorn_threads threads(n);
  if (in.scale.extent[0] == 3 && threads.own()) {
    const bool inside = own < n * n;
    const A entry = inside ? h(2 * n + own) : A(0),
            gradient = inside ? widened<A>(up.dcomb(t, own / n, own % n)) : A(0);
    const A result = sinkhorn_backward(entry, gradient, m, reinterpret_cast<A*>(memory), n, in.sinkhorn_iters,
                                       static_cast<A>(in.eps), threads);
    if (inside) dh[2 * n + own] = result;
  }
  __syncthreads();
  // Sums over the mixes: along = sum of scale dh z, and the three segments of dh z rho.
  A along = 0, dscale[3] = {};
  for (int row = own; row < mixes; row += 256) {
    const A d = dh[row], z = widened<A>(in.z(t, row)), scaled = d * widened<A>(in.scale(segment(row)));
    along += scaled * z;
    for (int s = 0; s < 3; ++s) dscale[s] += s == segment(row) ? d * z * rho : A(0);
    if (dz.data) dz(t, row) = narrowed<T>(rho * scaled);
  }
  along = block_sum(along, partial);
  for (int s = 0; s < 3; ++s) dscale[s] = block_sum(dscale[s], partial);
  if (own == 0)
    for (int s = 0; s < 3; ++s) all_dscale[3 * t + s] = dscale[s];
  if (!dx.data) return;
  const A factor = -along * rho * rho * rho / count;
  for (int i = 0; i < n; ++i)
    for (std::int64_t c = own; c < width; c += 256)
      dx(t, i, c) =
          narrowed<T>((add_to_dx ? widened<A>(dx(t, i, c)) : A(0)) + factor * widened<A>(in.x(t, i, c)));
}

/// Row r, column c of an array of accumulators.
template <class A>
struct array_term {
  const A* data;
  std::int64_t pitch;
  __device__ A operator()(std::int64_t r, std::int64_t c) const { return data[r * pitch + c]; }
};

/// One block per token: dpre[i] = du . x[i], dx[i] = pre[i] du, or is added to.
template <class T>
__global__ void __launch_bounds__(256)
    hyper_connection_collapse_backward_kernel(tensor_view<const T, space::device> x,
                                              matrix_view<const T, space::device> pre,
                                              matrix_view<const T, space::device> du,
                                              tensor_view<T, space::device> dx, bool add_to_dx,
                                              matrix_view<T, space::device> dpre) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A partial[8];
  const std::int64_t t = blockIdx.x;
  for (std::int64_t i = 0; i < x.extent[1]; ++i) {
    const A weight = widened<A>(pre(t, i));
    A dot = 0;
    for (std::int64_t c = threadIdx.x; c < x.extent[2]; c += 256) {
      const A d = widened<A>(du(t, c));
      dot += d * widened<A>(x(t, i, c));
      if (dx.data) dx(t, i, c) = narrowed<T>((add_to_dx ? widened<A>(dx(t, i, c)) : A(0)) + weight * d);
    }
    if (!dpre.data) continue;
    dot = block_sum(dot, partial);
    if (threadIdx.x == 0) dpre(t, i) = narrowed<T>(dot);
  }
}

/// One block per token. The products that make dpost and dcomb go by destination, AtOnce of them in a pass.
template <class T, int Streams, int AtOnce>
__global__ void __launch_bounds__(256)
    hyper_connection_expand_backward_kernel(typename hyper_connection_expand<T, space::device>::inputs in,
                                            tensor_view<const T, space::device> up,
                                            typename hyper_connection_expand<T, space::device>::gradients g) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A partial[8];
  const std::int64_t t = blockIdx.x, width = in.x.extent[2];
  const int n = static_cast<int>(in.x.extent[1]);
  for (int first = 0; first < n && (g.dpost.data || g.dcomb.data); first += AtOnce) {
    A dot[AtOnce][Streams + 1] = {};
    for (std::int64_t c = threadIdx.x; c < width; c += 256) {
      const A v = widened<A>(in.v(t, c));
      A x[Streams];
#pragma unroll
      for (int j = 0; j < Streams; ++j) x[j] = j < n ? widened<A>(in.x(t, j, c)) : A(0);
#pragma unroll
      for (int k = 0; k < AtOnce; ++k) {
        const A d = first + k < n ? widened<A>(up(t, first + k, c)) : A(0);
        dot[k][Streams] += v * d;
#pragma unroll
        for (int j = 0; j < Streams; ++j) dot[k][j] += x[j] * d;
      }
    }
#pragma unroll
    for (int k = 0; k < AtOnce; ++k) {
      if (first + k >= n) break;
      const A post = block_sum(dot[k][Streams], partial);
      if (threadIdx.x == 0 && g.dpost.data) g.dpost(t, first + k) = narrowed<T>(post);
#pragma unroll
      for (int j = 0; j < Streams; ++j) {
        if (j >= n) break;
        const A comb = block_sum(dot[k][j], partial);
        if (threadIdx.x == 0 && g.dcomb.data) g.dcomb(t, j, first + k) = narrowed<T>(comb);
      }
    }
  }
  // All destinations of a channel are read before one is written: dx may be the upstream gradient.
  for (std::int64_t c = threadIdx.x; c < width; c += 256) {
    A d[Streams], dv = 0;
#pragma unroll
    for (int k = 0; k < Streams; ++k) {
      d[k] = k < n ? widened<A>(up(t, k, c)) : A(0);
      if (k < n) dv += widened<A>(in.post(t, k)) * d[k];
    }
    if (g.dv.data) g.dv(t, c) = narrowed<T>(dv);
    if (!g.dx.data) continue;
#pragma unroll
    for (int j = 0; j < Streams; ++j) {
      if (j >= n) break;
      A sum = 0;
#pragma unroll
      for (int k = 0; k < Streams; ++k)
        if (k < n) sum += widened<A>(in.comb(t, j, k)) * d[k];
      g.dx(t, j, c) = narrowed<T>(sum);
    }
  }
}

template <class T>
void launch_gates_backward(const exec::cuda& p, basic_workspace<space::device>& w,
                           const typename hyper_connection_gates<T, space::device>::inputs& in,
                           const typename hyper_connection_gates<T, space::device>::upstream& up,
                           const typename hyper_connection_gates<T, space::device>::gradients& g) {
  using A = accumulator<T>;
  const workspace_scope scope(w);
  const std::int64_t rows = in.x.extent[0], n = in.x.extent[1], mixes = in.z.extent[1];
  expect(n <= most_streams, "hyper_connection_gates", "x streams", "at most 16", n);
  A* const dh = take<A>(w, rows, mixes).data;
  A* const dscale = take<A>(w, rows, 3).data;
  const std::size_t bytes = in.scale.extent[0] == 3 ? static_cast<std::size_t>(2 * in.sinkhorn_iters - 1) *
                                                          static_cast<std::size_t>(2 * n * n) * sizeof(A)
                                                    : 0;
  expect(bytes + 8192 <= p.device().shared_memory_per_block, "hyper_connection_gates", "sinkhorn_iters",
         "as many as fit in shared memory", in.sinkhorn_iters);
  p.launch("hyper_connection_gates", hyper_connection_gates_backward_kernel<T>,
           dim3(static_cast<unsigned>(rows)), 256, bytes, in, up, g.dx, g.add_to_dx, g.dz, dh, dscale);
  if (g.dbase.data) add_row_sums(p, "hyper_connection_gates", w, array_term<A>{dh, mixes}, rows, g.dbase);
  if (g.dscale.data) add_row_sums(p, "hyper_connection_gates", w, array_term<A>{dscale, 3}, rows, g.dscale);
}

}  // namespace dsv4::detail
