// SPDX-License-Identifier: Apache-2.0
/// Muon: momentum, orthogonalised by Newton-Schulz, as DeepSeek-V4 uses it.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/train/newton_schulz.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace dsv4 {

/// What an orthogonal update is multiplied by.
enum class muon_scale {
  match_rms,  ///< rms sqrt(max(rows, columns)): the update's root mean square is `rms` whatever the shape
  spectral,   ///< sqrt(max(1, rows / columns)), Jordan's original
};

/// DeepSeek-V4's constants (report, algorithm 1 and section 4.2).
struct muon_options {
  double momentum = 0.95;
  bool nesterov = true;
  double weight_decay = 0.1;
  muon_scale scale_mode = muon_scale::match_rms;
  double rms = 0.18;
  std::span<const newton_schulz_step> steps = newton_schulz_hybrid;
  newton_schulz_form form = newton_schulz_form::automatic;
  newton_schulz_products products = newton_schulz_products::full;
  std::int64_t batch_bytes = std::int64_t{64} << 20;  ///< matrices of one shape worked on at once

  double factor(std::int64_t rows, std::int64_t columns) const {
    if (scale_mode == muon_scale::spectral) return std::sqrt(std::max(1.0, double(rows) / double(columns)));
    return rms * std::sqrt(double(std::max(rows, columns)));
  }
};

/// One logical matrix and what belongs to it. `M` is the storage type of the momentum.
template <class T, class M = T, space S = space::host>
struct muon_matrix {
  matrix_view<T, S> weight;
  matrix_view<const T, S> gradient;
  matrix_view<M, S> momentum;
};

/// With g = gradient_scale gradient: momentum <- mu momentum + g, a sum and not a mean;
/// u[b] = mu momentum + g with the new momentum as it is stored (Nesterov), or that momentum itself.
template <class T, class M = T, space S = space::host>
struct muon_momentum {
  static constexpr space memory = S;
  struct inputs {
    std::span<const muon_matrix<T, M, S>> matrices;  // B, dense, of one shape
    double momentum;
    bool nesterov;
    double gradient_scale;
  };
  struct outputs {
    tensor_view<T, S> u;  // (B, N, M)
  };
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("muon_momentum", "u matrices", out.u.extent[0],
                  static_cast<std::int64_t>(in.matrices.size()));
    detail::dispatch<muon_momentum>(p, in, out);
  }
};

/// weight <- (1 - learning_rate weight_decay) weight - learning_rate factor o[b]: the decay is decoupled and
/// knows no factor.
template <class T, class M = T, space S = space::host>
struct muon_apply {
  static constexpr space memory = S;
  struct inputs {
    std::span<const muon_matrix<T, M, S>> matrices;  // B, dense, of one shape
    tensor_view<const T, S> o;                       // (B, N, M)
    double learning_rate, weight_decay, factor;
  };
  struct outputs {};  // the weights of `matrices`
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("muon_apply", "o matrices", in.o.extent[0], static_cast<std::int64_t>(in.matrices.size()));
    detail::dispatch<muon_apply>(p, in, out);
  }
};

/// One step of all `matrices`, which have one shape and lie dense.
template <class T, class M, space S, policy P>
void muon(const P& p, basic_workspace<S>& w, std::span<const muon_matrix<T, M, S>> matrices,
          double learning_rate, const muon_options& options = {}, double gradient_scale = 1) {
  if (matrices.empty()) return;
  const std::int64_t rows = matrices[0].weight.extent[0], columns = matrices[0].weight.extent[1];
  for (const auto& m : matrices) {
    for (int axis = 0; axis < 2; ++axis) {
      const std::string_view name = axis == 0 ? "rows" : "columns";
      expect_extent("muon", name, m.weight.extent[axis], axis == 0 ? rows : columns);
      expect_extent("muon", name, m.gradient.extent[axis], m.weight.extent[axis]);
      expect_extent("muon", name, m.momentum.extent[axis], m.weight.extent[axis]);
    }
    expect(m.weight.dense() && m.gradient.dense() && m.momentum.dense(), "muon", "matrices", "dense rows", 0);
  }
  const std::int64_t bytes = std::max<std::int64_t>(rows * columns * std::int64_t{sizeof(T)}, 1);
  const auto part = static_cast<std::size_t>(std::max<std::int64_t>(options.batch_bytes / bytes, 1));
  for (std::size_t begin = 0; begin < matrices.size(); begin += part) {
    workspace_scope<S> scope(w);
    const auto some = matrices.subspan(begin, std::min(part, matrices.size() - begin));
    const auto u = take<T>(w, static_cast<std::int64_t>(some.size()), rows, columns);
    muon_momentum<T, M, S>::forward(p, {some, options.momentum, options.nesterov, gradient_scale}, {u});
    newton_schulz<T, S>::forward(
        p, w, {.x = u, .steps = options.steps, .form = options.form, .products = options.products}, {u});
    muon_apply<T, M, S>::forward(
        p, {some, u, learning_rate, options.weight_decay, options.factor(rows, columns)}, {});
  }
}

template <class T, class M>
struct kernel<muon_momentum<T, M>, exec::reference> {
  using op = muon_momentum<T, M>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t b = 0; b < out.u.extent[0]; ++b) {
      const auto& m = in.matrices[static_cast<std::size_t>(b)];
      for (std::int64_t i = 0; i < m.weight.size(); ++i) {
        const double g = in.gradient_scale * double(m.gradient.data[i]);
        M& momentum = m.momentum.data[i];
        momentum = M(in.momentum * to_double(momentum) + g);
        out.u[b].data[i] = T(in.nesterov ? in.momentum * to_double(momentum) + g : to_double(momentum));
      }
    }
  }
};

template <class T, class M>
struct kernel<muon_apply<T, M>, exec::reference> {
  using op = muon_apply<T, M>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs&) {
    for (std::int64_t b = 0; b < in.o.extent[0]; ++b) {
      const auto& weight = in.matrices[static_cast<std::size_t>(b)].weight;
      for (std::int64_t i = 0; i < weight.size(); ++i)
        weight.data[i] = T((1 - in.learning_rate * in.weight_decay) * double(weight.data[i]) -
                           in.learning_rate * in.factor * double(in.o[b].data[i]));
    }
  }
};

template <class T, class M>
struct kernel<muon_momentum<T, M>, exec::cpu>;  // in train/cpu/muon.hpp

template <class T, class M>
struct kernel<muon_apply<T, M>, exec::cpu>;  // in train/cpu/muon.hpp

}  // namespace dsv4
