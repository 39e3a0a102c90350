// SPDX-License-Identifier: Apache-2.0
/// Gated pooling on the GPU: a thread per channel, and slots that share a long group's tokens.
#pragma once

#include <dsv4/ops/compress_pool.hpp>
#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>

namespace dsv4 {

namespace detail {
/// blockDim = (32 channels, Slots); slot s takes every Slots-th token with a running maximum, and the slots
/// are joined in their order.
template <class T, int Slots>
__global__ void __launch_bounds__(32 * Slots)
    compress_pool_kernel(matrix_view<const T, space::device> kv, matrix_view<const T, space::device> gate,
                         matrix_view<const T, space::device> bias, std::int64_t first_position,
                         std::int64_t first_entry, bool overlap, matrix_view<T, space::device> y) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  struct part {
    A top, sum, value;
  };
  __shared__ part parts[Slots][32];
  const std::int64_t m = bias.extent[0], width = y.extent[1];
  const std::int64_t f = std::int64_t{blockIdx.x} * 32 + threadIdx.x;
  const bool inside = f < width;
  for (std::int64_t i = blockIdx.y; i < y.extent[0]; i += gridDim.y) {
    const std::int64_t start = (first_entry + i) * m;  // position of the group's first token
    const std::int64_t begin = overlap && start > 0 ? start - m : start;
    part own{-infinity<A>, 0, 0};
    for (std::int64_t t = begin + threadIdx.y; inside && t < start + m; t += Slots) {
      const std::int64_t channel = overlap && t >= start ? width + f : f;
      const A logit = widened<A>(gate(t - first_position, channel)) + widened<A>(bias(t % m, channel));
      const A top = logit > own.top ? logit : own.top;
      const A old = exp(own.top - top), w = exp(logit - top);
      own = {top, own.sum * old + w, own.value * old + w * widened<A>(kv(t - first_position, channel))};
    }
    if constexpr (Slots > 1) {
      parts[threadIdx.y][threadIdx.x] = own;
      __syncthreads();
      if (threadIdx.y == 0) {
        for (int s = 1; s < Slots; ++s) {
          const part next = parts[s][threadIdx.x];
          if (next.sum == A(0)) continue;  // no tokens
          const A top = next.top > own.top ? next.top : own.top;
          const A a = exp(own.top - top), b = exp(next.top - top);
          own = {top, own.sum * a + next.sum * b, own.value * a + next.value * b};
        }
      }
      __syncthreads();
    }
    if (inside && threadIdx.y == 0) y(i, f) = narrowed<T>(own.value / own.sum);
  }
}

/// A thread per entry and channel; every gradient of a token's channel belongs to one entry.
template <class T>
__global__ void __launch_bounds__(128)
    compress_pool_backward_kernel(typename compress_pool<T, space::device>::inputs in,
                                  matrix_view<const T, space::device> dy, matrix_view<T, space::device> dkv,
                                  matrix_view<T, space::device> dgate) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  const std::int64_t m = in.bias.extent[0], width = dy.extent[1];
  for (std::int64_t j = global_thread(); j < dy.extent[0] * width; j += global_threads()) {
    const std::int64_t i = j / width, f = j % width;
    const std::int64_t start = (in.first_entry + i) * m, begin = in.overlap && start > 0 ? start - m : start;
    const auto channel = [&](std::int64_t t) { return in.overlap && t >= start ? width + f : f; };
    const auto kv = [&](std::int64_t t) { return widened<A>(in.kv(t - in.first_position, channel(t))); };
    const auto logit = [&](std::int64_t t) {
      return widened<A>(in.gate(t - in.first_position, channel(t))) + widened<A>(in.bias(t % m, channel(t)));
    };
    A top = -infinity<A>, sum = 0, y = 0;
    for (std::int64_t t = begin; t < start + m; ++t) {
      const A l = logit(t);
      top = l > top ? l : top;
    }
    for (std::int64_t t = begin; t < start + m; ++t) {
      const A e = exp(logit(t) - top);
      sum += e, y += e * kv(t);
    }
    y /= sum;
    const A d = widened<A>(dy(i, f));
    for (std::int64_t t = begin; t < start + m; ++t) {
      const A e = exp(logit(t) - top) / sum;
      if (dkv.data) dkv(t - in.first_position, channel(t)) = narrowed<T>(e * d);
      if (dgate.data) dgate(t - in.first_position, channel(t)) = narrowed<T>(e * (kv(t) - y) * d);
    }
  }
}

/// dbias[r, c] += sum of dgate over the tokens at positions r modulo m, in order. Block (32 channels, r).
template <class T>
__global__ void __launch_bounds__(256)
    compress_bias_kernel(matrix_view<const T, space::device> dgate, std::int64_t first_position,
                         matrix_view<T, space::device> dbias) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  __shared__ A sums[8][33];
  const std::int64_t m = dbias.extent[0], r = blockIdx.y, c = std::int64_t{blockIdx.x} * 32 + threadIdx.x;
  const std::int64_t first = (r - first_position % m + m) % m;  // the first row of this kind
  A sum = 0;
  for (std::int64_t row = first + threadIdx.y * m; c < dbias.extent[1] && row < dgate.extent[0]; row += 8 * m)
    sum += widened<A>(dgate(row, c));
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= dbias.extent[1]) return;
  for (int i = 1; i < 8; ++i) sum += sums[i][threadIdx.x];
  dbias(r, c) = narrowed<T>(widened<A>(dbias(r, c)) + sum);
}
}  // namespace detail

template <class T>
struct kernel<compress_pool<T, space::device>, exec::cuda> {
  using op = compress_pool<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const dim3 grid(static_cast<unsigned>(detail::ceil_div(out.y.extent[1], 32)),
                    static_cast<unsigned>(std::min<std::int64_t>(out.y.extent[0], 65535)));
    const auto run = [&](auto kernel, unsigned slots) {
      p.launch("compress_pool", kernel, grid, dim3(32, slots), 0, in.kv, in.gate, in.bias, in.first_position,
               in.first_entry, in.overlap, out.y);
    };
    if (in.bias.extent[0] >= 16)
      run(detail::compress_pool_kernel<T, 8>, 8);
    else
      run(detail::compress_pool_kernel<T, 1>, 1);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const workspace_scope scope(w);
    auto dgate = g.dgate;
    if (!dgate.data && g.dbias.data) dgate = take<T>(w, in.gate.extent[0], in.gate.extent[1]);
    detail::clear(p, "compress_pool", g.dkv);
    detail::clear(p, "compress_pool", dgate);
    p.launch("compress_pool", detail::compress_pool_backward_kernel<T>,
             detail::loop_grid(p, up.dy.size(), 128), 128, 0, in, up.dy, g.dkv, dgate);
    if (g.dbias.data)
      p.launch("compress_pool", detail::compress_bias_kernel<T>,
               dim3(static_cast<unsigned>(detail::ceil_div(g.dbias.extent[1], 32)),
                    static_cast<unsigned>(g.dbias.extent[0])),
               dim3(32, 8), 0, dgate, in.first_position, g.dbias);
  }
};

}  // namespace dsv4
