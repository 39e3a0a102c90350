// SPDX-License-Identifier: Apache-2.0
/// Hyper-connections on host threads: the streams pass by once.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/cpu/hyper_connection_gates.hpp>
#include <dsv4/ops/hyper_connection.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4 {
template <class T>
struct kernel<hyper_connection_collapse<T>, exec::cpu> {
  using op = hyper_connection_collapse<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    p.parallel_for(in.x.extent[0], 1 + 8192 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        T* u = out.u.data + t * out.u.stride[0];
        for (std::int64_t i = 0; i < n; ++i) {
          const T* x = in.x.data + t * in.x.stride[0] + i * in.x.stride[1];
          const T pre = in.pre(t, i);
          if (i == 0)
            for (std::int64_t c = 0; c < width; ++c) u[c] = pre * x[c];
          else
            for (std::int64_t c = 0; c < width; ++c) u[c] += pre * x[c];
        }
      }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    const auto& kernels = detail::best_kernels<T>();
    p.parallel_for(in.x.extent[0], 1 + 8192 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* du = up.du.data + t * up.du.stride[0];
        if (g.dpre.data)
          kernels.gemm_nt(du, 0, 1, in.x.data + t * in.x.stride[0], in.x.stride[1], n, width, &g.dpre(t, 0),
                          0);
        for (std::int64_t i = 0; g.dx.data && i < n; ++i) {
          T* dx = g.dx.data + t * g.dx.stride[0] + i * g.dx.stride[1];
          const T pre = in.pre(t, i);
          if (g.add_to_dx)
            for (std::int64_t c = 0; c < width; ++c) dx[c] += pre * du[c];
          else
            for (std::int64_t c = 0; c < width; ++c) dx[c] = pre * du[c];
        }
      }
    });
  }
};

template <class T>
struct kernel<hyper_connection_expand<T>, exec::cpu> {
  using op = hyper_connection_expand<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    constexpr std::int64_t block = 64;  // channels whose mixed streams wait here: X' may overwrite X
    p.parallel_for(in.x.extent[0], 1 + 8192 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      T mixed[16][block];
      for (std::int64_t t = begin; t < end; ++t)
        for (std::int64_t c0 = 0; c0 < width; c0 += block) {
          const std::int64_t count = std::min(block, width - c0);
          const T* v = in.v.data + t * in.v.stride[0] + c0;
          for (std::int64_t k = 0; k < n; ++k) {
            const T post = in.post(t, k);
            for (std::int64_t c = 0; c < count; ++c) mixed[k][c] = post * v[c];
            for (std::int64_t j = 0; j < n; ++j) {
              const T comb = in.comb(t, j, k);
              const T* x = in.x.data + t * in.x.stride[0] + j * in.x.stride[1] + c0;
              for (std::int64_t c = 0; c < count; ++c) mixed[k][c] += comb * x[c];
            }
          }
          for (std::int64_t k = 0; k < n; ++k)
            std::copy_n(mixed[k], count, out.x.data + t * out.x.stride[0] + k * out.x.stride[1] + c0);
        }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t n = in.x.extent[1], width = in.x.extent[2];
    constexpr std::int64_t block = 128;
    const auto& kernels = detail::best_kernels<T>();
    p.parallel_for(in.x.extent[0], 1 + 4096 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      T mixed[block], dstreams[16][block];
      for (std::int64_t t = begin; t < end; ++t) {
        const T* v = in.v.data + t * in.v.stride[0];
        const T* const x = in.x.data + t * in.x.stride[0];
        const auto dx = [&](std::int64_t k) {
          return up.dx.data + t * up.dx.stride[0] + k * up.dx.stride[1];
        };
        if (g.dpost.data) kernels.gemm_nt(v, 0, 1, dx(0), up.dx.stride[1], n, width, &g.dpost(t, 0), 0);
        if (g.dcomb.data)
          kernels.gemm_nt(x, in.x.stride[1], n, dx(0), up.dx.stride[1], n, width, &g.dcomb(t, 0, 0),
                          g.dcomb.stride[1]);
        for (std::int64_t c0 = 0; c0 < width; c0 += block) {
          const std::int64_t count = std::min(block, width - c0);
          for (std::int64_t k = 0; k < n; ++k) std::copy_n(dx(k) + c0, count, dstreams[k]);  // dx may be dx'
          const auto mix = [&](const auto& factor, T* to) {
            std::fill_n(mixed, count, T(0));
            for (std::int64_t k = 0; k < n; ++k) {
              const T f = factor(k);
              for (std::int64_t c = 0; c < count; ++c) mixed[c] += f * dstreams[k][c];
            }
            std::copy_n(mixed, count, to);
          };
          if (g.dv.data)
            mix([&](std::int64_t k) { return in.post(t, k); }, g.dv.data + t * g.dv.stride[0] + c0);
          for (std::int64_t j = 0; g.dx.data && j < n; ++j)
            mix([&](std::int64_t k) { return in.comb(t, j, k); },
                g.dx.data + t * g.dx.stride[0] + j * g.dx.stride[1] + c0);
        }
      }
    });
  }
};

}  // namespace dsv4
