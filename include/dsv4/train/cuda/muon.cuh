// SPDX-License-Identifier: Apache-2.0
/// The element-wise parts of Muon on the GPU, in the scalar type.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/train/cuda/newton_schulz.cuh>
#include <dsv4/train/muon.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace dsv4 {

namespace detail {
/// Where the matrices of one launch lie: they travel as an argument, so nothing waits for a copy.
template <class T, class M>
struct muon_pointers {
  static constexpr int most = 64;
  T* weight[most];
  const T* gradient[most];
  M* momentum[most];
};

template <class T, class M>
__global__ void __launch_bounds__(256)
    muon_momentum_kernel(muon_pointers<T, M> m, std::int64_t size, T scale, T mu, bool nesterov, T* u) {
  wait_for_previous_kernels();
  const T* const gradient = m.gradient[blockIdx.y];
  M* const momentum = m.momentum[blockIdx.y];
  u += blockIdx.y * size;
  const T ahead = nesterov ? mu : T(1), now = nesterov ? scale : T(0);
  for (std::int64_t i = global_thread(); i < size; i += global_threads()) {
    const T g = gradient[i];
    const M sum = narrowed<M>(mu * widened<T>(momentum[i]) + scale * g);
    momentum[i] = sum;
    u[i] = ahead * widened<T>(sum) + now * g;
  }
}

template <class T, class M>
__global__ void __launch_bounds__(256)
    muon_apply_kernel(muon_pointers<T, M> m, std::int64_t size, T keep, T rate, const T* o) {
  wait_for_previous_kernels();
  T* const weight = m.weight[blockIdx.y];
  o += blockIdx.y * size;
  for (std::int64_t i = global_thread(); i < size; i += global_threads())
    weight[i] = keep * weight[i] - rate * o[i];
}

/// Calls launch(pointers, first, grid) for parts of the matrices, `size` elements each.
template <class T, class M, class Launch>
void for_muon_parts(const exec::cuda& p, std::span<const muon_matrix<T, M, space::device>> matrices,
                    std::int64_t size, const Launch& launch) {
  constexpr std::size_t most = muon_pointers<T, M>::most;
  for (std::size_t first = 0; first < matrices.size(); first += most) {
    const auto part = matrices.subspan(first, std::min(most, matrices.size() - first));
    muon_pointers<T, M> pointers{};
    for (std::size_t i = 0; i < part.size(); ++i) {
      pointers.weight[i] = part[i].weight.data;
      pointers.gradient[i] = part[i].gradient.data;
      pointers.momentum[i] = part[i].momentum.data;
    }
    launch(pointers, static_cast<std::int64_t>(first),
           dim3(loop_grid(p, size, 256).x, static_cast<unsigned>(part.size())));
  }
}
}  // namespace detail

template <class T, class M>
struct kernel<muon_momentum<T, M, space::device>, exec::cuda> {
  using op = muon_momentum<T, M, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t size = out.u.extent[1] * out.u.extent[2];
    detail::for_muon_parts(p, in.matrices, size,
                           [&](const detail::muon_pointers<T, M>& pointers, std::int64_t first, dim3 grid) {
                             p.launch("muon_momentum", detail::muon_momentum_kernel<T, M>, grid, 256, 0,
                                      pointers, size, T(in.gradient_scale), T(in.momentum), in.nesterov,
                                      out.u.data + first * size);
                           });
  }
};

template <class T, class M>
struct kernel<muon_apply<T, M, space::device>, exec::cuda> {
  using op = muon_apply<T, M, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs&) {
    const std::int64_t size = in.o.extent[1] * in.o.extent[2];
    detail::for_muon_parts(p, in.matrices, size,
                           [&](const detail::muon_pointers<T, M>& pointers, std::int64_t first, dim3 grid) {
                             p.launch("muon_apply", detail::muon_apply_kernel<T, M>, grid, 256, 0, pointers,
                                      size, T(1 - in.learning_rate * in.weight_decay),
                                      T(in.learning_rate * in.factor), in.o.data + first * size);
                           });
  }
};

}  // namespace dsv4
