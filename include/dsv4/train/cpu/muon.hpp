// SPDX-License-Identifier: Apache-2.0
/// The element-wise parts of Muon on host threads, in the scalar type.
#pragma once

#include <dsv4/train/cpu/newton_schulz.hpp>
#include <dsv4/train/cpu/pieces.hpp>
#include <dsv4/train/muon.hpp>

#include <cstdint>

namespace dsv4 {
template <class T, class M>
struct kernel<muon_momentum<T, M>, exec::cpu> {
  using op = muon_momentum<T, M>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const T scale = T(in.gradient_scale), mu = T(in.momentum);
    detail::for_each_piece(p, out.u.extent[0], out.u.extent[1] * out.u.extent[2],
                           [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
                             const auto& m = in.matrices[static_cast<std::size_t>(b)];
                             const T* const gradient = m.gradient.data;
                             M* const momentum = m.momentum.data;
                             T* const u = out.u[b].data;
                             const T ahead = in.nesterov ? mu : T(1), now = in.nesterov ? scale : T(0);
                             for (std::int64_t i = begin; i < end; ++i) {
                               const M sum = momentum[i] =
                                   M(mu * T(widen(momentum[i])) + scale * gradient[i]);
                               u[i] = ahead * T(widen(sum)) + now * gradient[i];
                             }
                           });
  }
};

template <class T, class M>
struct kernel<muon_apply<T, M>, exec::cpu> {
  using op = muon_apply<T, M>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs&) {
    const T keep = T(1 - in.learning_rate * in.weight_decay), rate = T(in.learning_rate * in.factor);
    detail::for_each_piece(p, in.o.extent[0], in.o.extent[1] * in.o.extent[2],
                           [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
                             T* const weight = in.matrices[static_cast<std::size_t>(b)].weight.data;
                             const T* const o = in.o[b].data;
                             for (std::int64_t i = begin; i < end; ++i)
                               weight[i] = keep * weight[i] - rate * o[i];
                           });
  }
};

}  // namespace dsv4
