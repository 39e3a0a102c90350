// SPDX-License-Identifier: Apache-2.0
/// The expert router: square-root-softplus scores, top-k by score and bias, or a table of token ids.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsv4 {
/// s = sqrt(softplus(logits)). Experts: the k of largest s + bias (ties to the lower index) or, with a table,
/// row tokens[t] of it. weights[t, j] = factor s[e_j] / sum_j s[e_j], from the unbiased s
/// (docs/blocks/moe.md). Where every s underflows to 0 the weights are 0. Give either `bias` or `table` and
/// `tokens`. Throws contract_error when a token id is outside the table or an entry of the table is no
/// expert.
/// backward: the choice is a constant, and no gradient reaches the bias. With g = weights, s' = softplus,
/// tau_t = sum_j dweights[t, j] g[t, j] and D = sum_j s[e_j], for every chosen e_j
///   dlogits[t, e_j] = 1/2 (factor dweights[t, j] - tau_t) (s[e_j] / D) (sigmoid / softplus)(logits[t, e_j]),
/// and 0 for the other experts.
template <class T, space S = space::host>
struct route {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> logits;             // (N, E)
    vector_view<const T, S> bias;               // (E) or empty
    matrix_view<const std::int32_t, S> table;   // (V, k) or empty
    vector_view<const std::int32_t, S> tokens;  // (N), read with a table
    double factor;
  };
  struct outputs {
    matrix_view<std::int32_t, S> experts;  // (N, k)
    matrix_view<T, S> weights;             // (N, k)
  };
  struct saved {
    matrix_view<const std::int32_t, S> experts;  // (N, k), forward's output: choosing again costs a top-k
  };
  struct upstream {
    matrix_view<const T, S> dweights;  // (N, k)
  };
  struct gradients {
    matrix_view<T, S> dlogits;  // (N, E)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("route", "experts rows", out.experts.extent[0], in.logits.extent[0]);
    expect_extent("route", "weights rows", out.weights.extent[0], in.logits.extent[0]);
    expect_extent("route", "weights width", out.weights.extent[1], out.experts.extent[1]);
    if (in.table.data) {
      expect_extent("route", "table width", in.table.extent[1], out.experts.extent[1]);
      expect_extent("route", "tokens", in.tokens.extent[0], in.logits.extent[0]);
    } else {
      expect_extent("route", "bias", in.bias.extent[0], in.logits.extent[1]);
    }
    detail::dispatch<route>(p, in, out);
  }

  /// Of the inputs only `logits` and `factor` are read.
  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const saved& kept,
                       const upstream& up, const gradients& g) {
    if (!g.dlogits.data) return;
    expect_extent("route", "experts rows", kept.experts.extent[0], in.logits.extent[0]);
    detail::expect_upstream("route", "dweights", up.dweights, kept.experts);
    detail::expect_gradient("route", "dlogits", g.dlogits, in.logits);
    detail::dispatch_backward<route>(p, w, in, kept, up, g);
  }

  /// sigmoid(x) / softplus(x), which tends to 1 for x -> -inf, where both vanish.
  static double slope(double x) {
    if (x < -40) return 1;
    const double e = std::exp(-std::abs(x));
    return x > 0 ? 1 / (1 + e) / (x + std::log1p(e)) : e / (1 + e) / std::log1p(e);
  }

  /// sqrt(softplus(x)) without overflow at either end.
  static double score(double x) {
    return std::sqrt(x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)));
  }
};

template <class T>
struct kernel<route<T>, exec::reference> {
  using op = route<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.logits.extent[1], k = out.experts.extent[1];
    std::vector<std::int32_t> order(static_cast<std::size_t>(n));
    std::vector<T> keys(order.size());
    for (std::int64_t t = 0; t < in.logits.extent[0]; ++t) {
      if (in.table.data) {
        const std::int64_t id = in.tokens(t);
        expect(id >= 0 && id < in.table.extent[0], "route", numbered{"tokens[", t, "]"}, "a row of the table",
               id);
        for (std::int64_t j = 0; j < k; ++j) {
          const std::int32_t e = out.experts(t, j) = in.table(id, j);
          expect(e >= 0 && e < n, "route", numbered{"table[", id, "]"}, "an expert", e);
        }
      } else {
        // Selection in the storage type: double rounding must not separate what the model holds equal.
        for (std::int64_t e = 0; e < n; ++e) {
          order[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(e);
          keys[static_cast<std::size_t>(e)] = T(op::score(double(in.logits(t, e)))) + in.bias(e);
        }
        const auto key = [&](std::int32_t e) { return keys[static_cast<std::size_t>(e)]; };
        std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](std::int32_t a, std::int32_t b) {
          return key(a) != key(b) ? key(a) > key(b) : a < b;
        });
        for (std::int64_t j = 0; j < k; ++j) out.experts(t, j) = order[static_cast<std::size_t>(j)];
      }
      double sum = 0;
      for (std::int64_t j = 0; j < k; ++j) sum += op::score(double(in.logits(t, out.experts(t, j))));
      for (std::int64_t j = 0; j < k; ++j)
        out.weights(t, j) =
            T(sum > 0 ? op::score(double(in.logits(t, out.experts(t, j)))) / sum * in.factor : 0);
    }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in, const typename op::saved& kept,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t k = kept.experts.extent[1];
    for (std::int64_t t = 0; t < in.logits.extent[0]; ++t) {
      const auto logit = [&](std::int64_t j) { return double(in.logits(t, kept.experts(t, j))); };
      double sum = 0, tau = 0;
      for (std::int64_t j = 0; j < k; ++j) sum += op::score(logit(j));
      const auto share = [&](std::int64_t j) { return sum > 0 ? op::score(logit(j)) / sum : 0.0; };
      for (std::int64_t j = 0; j < k; ++j) tau += double(up.dweights(t, j)) * in.factor * share(j);
      for (std::int64_t e = 0; e < in.logits.extent[1]; ++e) g.dlogits(t, e) = T(0);
      for (std::int64_t j = 0; j < k; ++j) {  // a table may name an expert twice
        T& to = g.dlogits(t, kept.experts(t, j));
        to = T(double(to) +
               (in.factor * double(up.dweights(t, j)) - tau) * share(j) * op::slope(logit(j)) / 2);
      }
    }
  }
};

/// A few hundred scores per token: nothing to win over the reference.
template <class T>
struct kernel<route<T>, exec::cpu> : kernel<route<T>, exec::reference> {};

}  // namespace dsv4
