// SPDX-License-Identifier: Apache-2.0
/// Hyper-connections on the GPU: gates with Sinkhorn in shared memory, collapse, expansion.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/hyper_connection_backward.cuh>
#include <dsv4/ops/hyper_connection.hpp>

namespace dsv4 {

namespace detail {
/// The Sinkhorn passes over an n x n matrix: thread j n + k brings entry (j, k) and takes its result; threads
/// from n n on only wait with the others. `m` and `work` hold n n entries.
template <class A>
__device__ A sinkhorn(A value, A* m, A* work, int n, int iterations, A eps, const sinkhorn_threads& threads) {
  const int thread = static_cast<int>(threadIdx.x);
  const bool inside = thread < n * n;
  const int own = inside ? thread : 0, j = own / n, k = own % n;
  if (inside) m[own] = value;
  threads.wait();
  A top = m[j * n], sum = 0;
  for (int i = 1; i < n; ++i) top = m[j * n + i] > top ? m[j * n + i] : top;
  for (int i = 0; i < n; ++i) sum += exp(m[j * n + i] - top);
  value = exp(value - top) / sum + eps;
  threads.wait();
  for (int iteration = 0; iteration < iterations; ++iteration) {
    if (iteration > 0) {  // rows; the softmax was the first row pass
      if (inside) work[own] = value;
      threads.wait();
      sum = eps;
      for (int i = 0; i < n; ++i) sum += work[j * n + i];
      value /= sum;
    }
    if (inside) m[own] = value;  // columns
    threads.wait();
    sum = eps;
    for (int i = 0; i < n; ++i) sum += m[i * n + k];
    value /= sum;
  }
  return value;
}

/// One block per token.
template <class T, int N>
__global__ void __launch_bounds__(256)
    hyper_connection_gates_kernel(tensor_view<const T, space::device> x,
                                  matrix_view<const T, space::device> z,
                                  vector_view<const T, space::device> base,
                                  vector_view<const T, space::device> scale, double norm_eps, double eps_,
                                  int iterations, matrix_view<T, space::device> pre,
                                  matrix_view<T, space::device> post, tensor_view<T, space::device> comb) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A partial[8], m[most_streams * most_streams], work[most_streams * most_streams];
  const std::int64_t t = blockIdx.x;
  const int n = static_cast<int>(x.extent[1]), own = static_cast<int>(threadIdx.x);
  const A eps = static_cast<A>(eps_);
  const A squares = block_sum(token_squares<N>(x, t), partial);
  const A rho = A(1) / sqrt(squares / static_cast<A>(n * x.extent[2]) + static_cast<A>(norm_eps));
  const auto h = [&](int row, int segment) {
    return widened<A>(z(t, row)) * rho * widened<A>(scale(segment)) + widened<A>(base(row));
  };
  const auto sigmoid = [](A v) { return A(1) / (A(1) + exp(-v)); };
  if (own < n) pre(t, own) = narrowed<T>(sigmoid(h(own, 0)) + eps);
  if (scale.extent[0] == 1) return;
  if (own < n) post(t, own) = narrowed<T>(2 * sigmoid(h(n + own, 1)));
  const sinkhorn_threads threads(n);
  if (!threads.own()) return;
  const A entry = own < n * n ? h(2 * n + own, 2) : A(0);
  const A result = sinkhorn(entry, m, work, n, iterations, eps, threads);
  if (own < n * n) comb(t, own / n, own % n) = narrowed<T>(result);
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    hyper_connection_collapse_kernel(tensor_view<const T, space::device> x,
                                     matrix_view<const T, space::device> pre,
                                     matrix_view<T, space::device> u) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  const std::int64_t t = blockIdx.x, packs = u.extent[1] / N;
  for (std::int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    A sum[N] = {};
    for (std::int64_t s = 0; s < x.extent[1]; ++s) {
      const A weight = widened<A>(pre(t, s));
      const P v = *reinterpret_cast<const P*>(&x(t, s, i * N));
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] += weight * widened<A>(v.value[c]);
    }
    P result;
#pragma unroll
    for (int c = 0; c < N; ++c) result.value[c] = narrowed<T>(sum[c]);
    *reinterpret_cast<P*>(&u(t, i * N)) = result;
  }
}

/// All streams of a channel are read before one is written, so x may be out.
template <class T, int N, int Streams>
__global__ void __launch_bounds__(256)
    hyper_connection_expand_kernel(tensor_view<const T, space::device> x,
                                   matrix_view<const T, space::device> v,
                                   matrix_view<const T, space::device> post,
                                   tensor_view<const T, space::device> comb,
                                   tensor_view<T, space::device> out) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  __shared__ A mix[Streams + 1][Streams];  // the last row is post
  const std::int64_t t = blockIdx.x, packs = x.extent[2] / N;
  const int n = static_cast<int>(x.extent[1]);
  for (int i = static_cast<int>(threadIdx.x); i < (Streams + 1) * Streams;
       i += static_cast<int>(blockDim.x)) {
    const int j = i / Streams, k = i % Streams;
    mix[j][k] = k >= n         ? A(0)
                : j == Streams ? widened<A>(post(t, k))
                : j < n        ? widened<A>(comb(t, j, k))
                               : A(0);
  }
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const P y = *reinterpret_cast<const P*>(&v(t, i * N));
    P in[Streams];
#pragma unroll
    for (int j = 0; j < Streams; ++j)
      if (j < n) in[j] = *reinterpret_cast<const P*>(&x(t, j, i * N));
#pragma unroll
    for (int k = 0; k < Streams; ++k) {
      if (k >= n) break;
      P result;
#pragma unroll
      for (int c = 0; c < N; ++c) {
        A sum = mix[Streams][k] * widened<A>(y.value[c]);
#pragma unroll
        for (int j = 0; j < Streams; ++j)
          if (j < n) sum += mix[j][k] * widened<A>(in[j].value[c]);
        result.value[c] = narrowed<T>(sum);
      }
      *reinterpret_cast<P*>(&out(t, k, i * N)) = result;
    }
  }
}

/// Four streams, a vector of each per thread: all that a thread reads is asked for at once. Block (token,
/// vectors).
template <class T, int N>
__global__ void __launch_bounds__(256)
    hyper_connection_expand_4_kernel(tensor_view<const T, space::device> x,
                                     matrix_view<const T, space::device> v,
                                     matrix_view<const T, space::device> post,
                                     tensor_view<const T, space::device> comb,
                                     tensor_view<T, space::device> out) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  const std::int64_t t = blockIdx.x, i = std::int64_t{blockIdx.y} * 256 + threadIdx.x;
  if (i * N >= x.extent[2]) return;
  P in[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) in[j] = *reinterpret_cast<const P*>(&x(t, j, i * N));
  const P y = *reinterpret_cast<const P*>(&v(t, i * N));
  A closing[4], mix[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    closing[k] = widened<A>(post(t, k));
#pragma unroll
    for (int j = 0; j < 4; ++j) mix[j][k] = widened<A>(comb(t, j, k));
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    P result;
#pragma unroll
    for (int c = 0; c < N; ++c) {
      A sum = closing[k] * widened<A>(y.value[c]);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += mix[j][k] * widened<A>(in[j].value[c]);
      result.value[c] = narrowed<T>(sum);
    }
    *reinterpret_cast<P*>(&out(t, k, i * N)) = result;
  }
}
}  // namespace detail

template <class T>
struct kernel<hyper_connection_gates<T, space::device>, exec::cuda> {
  using op = hyper_connection_gates<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    expect(in.x.extent[1] <= detail::most_streams, "hyper_connection_gates", "x streams", "at most 16",
           in.x.extent[1]);
    const auto run = [&](auto kernel) {
      p.launch("hyper_connection_gates", kernel, dim3(static_cast<unsigned>(in.x.extent[0])), 256, 0, in.x,
               in.z, in.base, in.scale, in.norm_eps, in.eps, in.sinkhorn_iters, out.pre, out.post, out.comb);
    };
    if (detail::vectorisable(in.x))
      run(detail::hyper_connection_gates_kernel<T, detail::vector_width<T>>);
    else
      run(detail::hyper_connection_gates_kernel<T, 1>);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::launch_gates_backward<T>(p, w, in, up, g);
  }
};

template <class T>
struct kernel<hyper_connection_collapse<T, space::device>, exec::cuda> {
  using op = hyper_connection_collapse<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const auto run = [&](auto kernel) {
      p.launch("hyper_connection_collapse", kernel, dim3(static_cast<unsigned>(in.x.extent[0])), 256, 0, in.x,
               in.pre, out.u);
    };
    if (detail::all_vectorisable(in.x, out.u))
      run(detail::hyper_connection_collapse_kernel<T, detail::vector_width<T>>);
    else
      run(detail::hyper_connection_collapse_kernel<T, 1>);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    p.launch("hyper_connection_collapse", detail::hyper_connection_collapse_backward_kernel<T>,
             dim3(static_cast<unsigned>(in.x.extent[0])), 256, 0, in.x, in.pre, up.du, g.dx, g.add_to_dx,
             g.dpre);
  }
};

template <class T>
struct kernel<hyper_connection_expand<T, space::device>, exec::cuda> {
  using op = hyper_connection_expand<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    expect(in.x.extent[1] <= detail::most_streams, "hyper_connection_expand", "x streams", "at most 16",
           in.x.extent[1]);
    const auto run = [&](auto kernel) {
      p.launch("hyper_connection_expand", kernel, dim3(static_cast<unsigned>(in.x.extent[0])), 256, 0, in.x,
               in.v, in.post, in.comb, out.x);
    };
    const bool few = in.x.extent[1] <= 4;
    if (detail::all_vectorisable(in.x, in.v, out.x) && in.x.extent[1] == 4)
      p.launch("hyper_connection_expand", detail::hyper_connection_expand_4_kernel<T, n>,
               dim3(static_cast<unsigned>(in.x.extent[0]),
                    static_cast<unsigned>(detail::ceil_div(in.x.extent[2], 256 * n))),
               256, 0, in.x, in.v, in.post, in.comb, out.x);
    else if (detail::all_vectorisable(in.x, in.v, out.x) && few)
      run(detail::hyper_connection_expand_kernel<T, n, 4>);
    else if (few)
      run(detail::hyper_connection_expand_kernel<T, 1, 4>);
    else
      run(detail::hyper_connection_expand_kernel<T, 1, detail::most_streams>);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    expect(in.x.extent[1] <= detail::most_streams, "hyper_connection_expand", "x streams", "at most 16",
           in.x.extent[1]);
    const auto run = [&](auto kernel) {
      p.launch("hyper_connection_expand", kernel, dim3(static_cast<unsigned>(in.x.extent[0])), 256, 0, in,
               up.dx, g);
    };
    if (in.x.extent[1] <= 4)
      run(detail::hyper_connection_expand_backward_kernel<T, 4, 4>);
    else
      run(detail::hyper_connection_expand_backward_kernel<T, detail::most_streams, 1>);
  }
};

}  // namespace dsv4
