// SPDX-License-Identifier: Apache-2.0
/// Cross-entropy of next tokens straight from the last hidden states: logits exist tile by tile only.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/ops/backward.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dsv4 {
/// With logits z[t, v] = hidden[t, :] . head[v, :]
///   loss[t] = log sum_v e^{z[t, v]} - z[t, targets[t]], and 0 where targets[t] is negative (masked).
/// backward, with dz[t, v] = dloss[t] (e^{z[t, v] - lse[t]} - [v = targets[t]]), 0 in masked rows:
///   dhidden[t, :] = sum_v dz[t, v] head[v, :],   dhead[v, :] += sum_t dz[t, v] hidden[t, :].
/// The head may be stored narrower (`W`), as in `linear`. Throws contract_error when a target is not below V.
template <class T, space S = space::host, class W = T>
struct cross_entropy {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> hidden;              // (N, D)
    storage_matrix<const W, S> head;             // (V, D)
    vector_view<const std::int32_t, S> targets;  // (N)
  };
  struct outputs {
    vector_view<T, S> loss;  // (N)
  };
  struct saved {
    vector_view<T, S> lse;  // (N), written by forward: without it backward would have to see all logits twice
  };
  struct upstream {
    vector_view<const T, S> dloss;  // (N)
  };
  struct gradients {
    matrix_view<T, S> dhidden;  // (N, D)
    matrix_view<T, S> dhead;    // (V, D)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out,
                      const saved& keep = {}) {
    check(in);
    expect_extent("cross_entropy", "loss", out.loss.extent[0], in.hidden.extent[0]);
    if (keep.lse.data) expect_extent("cross_entropy", "lse", keep.lse.extent[0], in.hidden.extent[0]);
    static_assert(P::memory == S, "dsv4: the op's views live in another memory space than the policy's");
    kernel<cross_entropy, P>::forward(p, w, in, out, keep);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const saved& kept,
                       const upstream& up, const gradients& g) {
    check(in);
    expect_extent("cross_entropy", "lse", kept.lse.extent[0], in.hidden.extent[0]);
    check(in, up, g);
    detail::dispatch_backward<cross_entropy>(p, w, in, kept, up, g);
  }

  /// Both, where dloss is known beforehand: the same bits, but a kernel may keep logits in between.
  template <policy P>
  static void forward_backward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out,
                               const upstream& up, const gradients& g) {
    if constexpr (requires { kernel<cross_entropy, P>::forward_backward(p, w, in, out, up, g); }) {
      check(in);
      expect_extent("cross_entropy", "loss", out.loss.extent[0], in.hidden.extent[0]);
      check(in, up, g);
      kernel<cross_entropy, P>::forward_backward(p, w, in, out, up, g);
    } else {
      const workspace_scope<S> scope(w);
      const auto lse = take<T>(w, in.hidden.extent[0]);
      forward(p, w, in, out, {lse});
      backward(p, w, in, {lse}, up, g);
    }
  }

  /// For kernels on the host.
  static void check_targets(const inputs& in) {
    for (std::int64_t t = 0; t < in.targets.extent[0]; ++t)
      expect(in.targets(t) < in.head.extent[0], "cross_entropy", numbered{"targets[", t, "]"},
             numbered{"below ", in.head.extent[0]}, in.targets(t));
  }

 private:
  static void check(const inputs& in) {
    expect_extent("cross_entropy", "head columns", in.head.extent[1], in.hidden.extent[1]);
    expect_extent("cross_entropy", "targets", in.targets.extent[0], in.hidden.extent[0]);
  }
  static void check(const inputs& in, const upstream& up, const gradients& g) {
    expect_extent("cross_entropy", "dloss", up.dloss.extent[0], in.hidden.extent[0]);
    detail::expect_gradient("cross_entropy", "dhidden", g.dhidden, in.hidden);
    detail::expect_gradient("cross_entropy", "dhead", g.dhead, in.head);
  }
};

template <class T, class W>
struct kernel<cross_entropy<T, space::host, W>, exec::reference> {
  using op = cross_entropy<T, space::host, W>;

  static void forward(const auto&, workspace&, const typename op::inputs& in, const typename op::outputs& out,
                      const typename op::saved& keep) {
    op::check_targets(in);
    for (std::int64_t t = 0; t < in.hidden.extent[0]; ++t) {
      std::vector<double> z;
      const double lse = logits(in, t, z);
      if (keep.lse.data) keep.lse(t) = T(lse);
      out.loss(t) = T(in.targets(t) < 0 ? 0 : lse - z[static_cast<std::size_t>(in.targets(t))]);
    }
  }

  /// Needs nothing of what forward kept.
  static void backward(const auto&, workspace&, const typename op::inputs& in, const typename op::saved&,
                       const typename op::upstream& up, const typename op::gradients& g) {
    op::check_targets(in);
    const std::int64_t vocabulary = in.head.extent[0], width = in.head.extent[1];
    std::vector<double> dhead(static_cast<std::size_t>(vocabulary * width), 0.0);
    for (std::int64_t t = 0; t < in.hidden.extent[0]; ++t) {
      std::vector<double> z, dhidden(static_cast<std::size_t>(width), 0.0);
      const double lse = logits(in, t, z);
      for (std::int64_t v = 0; in.targets(t) >= 0 && v < vocabulary; ++v) {
        const double dz = double(up.dloss(t)) *
                          (std::exp(z[static_cast<std::size_t>(v)] - lse) - (v == in.targets(t) ? 1 : 0));
        for (std::int64_t c = 0; c < width; ++c) {
          dhidden[static_cast<std::size_t>(c)] += dz * to_double(in.head(v, c));
          dhead[static_cast<std::size_t>(v * width + c)] += dz * double(in.hidden(t, c));
        }
      }
      for (std::int64_t c = 0; g.dhidden.data && c < width; ++c)
        g.dhidden(t, c) = T(dhidden[static_cast<std::size_t>(c)]);
    }
    for (std::int64_t v = 0; v < g.dhead.extent[0]; ++v)
      for (std::int64_t c = 0; c < width; ++c)
        g.dhead(v, c) = T(double(g.dhead(v, c)) + dhead[static_cast<std::size_t>(v * width + c)]);
  }

 private:
  /// z of row t; returns its log-sum-exp.
  static double logits(const typename op::inputs& in, std::int64_t t, std::vector<double>& z) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::int64_t v = 0; v < in.head.extent[0]; ++v) {
      z.push_back(0);
      for (std::int64_t c = 0; c < in.head.extent[1]; ++c)
        z.back() += double(in.hidden(t, c)) * to_double(in.head(v, c));
      top = std::max(top, z.back());
    }
    for (double v : z) sum += std::exp(v - top);
    return top + std::log(sum);
  }
};

template <class T, class W>
struct kernel<cross_entropy<T, space::host, W>, exec::cpu>;  // in ops/cpu/cross_entropy.hpp

}  // namespace dsv4
