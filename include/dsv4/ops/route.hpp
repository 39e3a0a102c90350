// SPDX-License-Identifier: Apache-2.0
/// The expert router: square-root-softplus scores, top-k by score and bias, or a table of token ids.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsv4 {
/// s = sqrt(softplus(logits)). Experts: the k of largest s + bias (ties to the lower index) or, with a table,
/// row tokens[t] of it. weights[t, j] = factor s[e_j] / sum_j s[e_j], from the unbiased s (specification,
/// section 8). Where every s underflows to 0 the weights are 0. Give either `bias` or `table` and `tokens`.
/// Throws contract_error when a token id is outside the table or an entry of the table is no expert.
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
    for (std::int64_t t = 0; t < in.logits.extent[0]; ++t) {
      if (in.table.data) {
        const std::int64_t id = in.tokens(t);
        expect(id >= 0 && id < in.table.extent[0], "route", "tokens[" + std::to_string(t) + "]",
               "a row of the table", id);
        for (std::int64_t j = 0; j < k; ++j) {
          const std::int32_t e = out.experts(t, j) = in.table(id, j);
          expect(e >= 0 && e < n, "route", "table[" + std::to_string(id) + "]", "an expert", e);
        }
      } else {
        // Selection in the storage type: double rounding must not separate what the model holds equal.
        const auto key = [&](std::int32_t e) { return T(op::score(double(in.logits(t, e)))) + in.bias(e); };
        for (std::int64_t e = 0; e < n; ++e)
          order[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(e);
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
};

/// A few hundred scores per token: nothing to win over the reference.
template <class T>
struct kernel<route<T>, exec::cpu> : kernel<route<T>, exec::reference> {};

}  // namespace dsv4
