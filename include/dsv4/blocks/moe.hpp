// SPDX-License-Identifier: Apache-2.0
/// DeepSeekMoE: router, routed experts, shared expert.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/config/numerics.hpp>
#include <dsv4/exec/branch.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/activation_linear.hpp>
#include <dsv4/ops/expert_dispatch.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/route_dispatch.hpp>
#include <dsv4/ops/swiglu.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace dsv4 {

/// The matrices of all routed experts of a layer, stored as `W`.
template <class T, class W, space S = space::host>
struct expert_stacks {
  weight_stack<T, W, S> w1, w3;  // (E, I, D) gate and up projection
  weight_stack<T, W, S> w2;      // (E, D, I) down projection
};

/// Brings experts into memory that do not all fit there. Implemented by whoever holds the weights.
template <class T, class W>
class expert_source {
 public:
  virtual ~expert_source() = default;
  /// Makes the first of the experts `needed` (ascending) of `layer` present, as many as fit and at least one,
  /// and returns how many. `stacks` then holds their matrices, until the next call.
  virtual std::int64_t acquire(int layer, std::span<const std::int64_t> needed,
                               expert_stacks<T, W>& stacks) = 0;
};

template <class T, numerics_config Q = numerics::float32, space S = space::host>
struct moe_parameters {
  using stored = storage_types<T, Q>;
  weight_matrix<T, typename stored::wide, S> gate;  // (E, D)
  vector_view<T, S> gate_bias;                      // (E), empty in a hash layer
  matrix_view<std::int32_t, S> tid2eid;             // (V, k), empty otherwise
  expert_stacks<T, typename stored::expert, S> experts;
  weight_matrix<T, typename stored::linear, S> shared_w1, shared_w3;  // (I, D)
  weight_matrix<T, typename stored::linear, S> shared_w2;             // (D, I)
  /// Where the experts come from when `experts` does not hold them; null otherwise.
  expert_source<T, typename stored::expert>* source = nullptr;
  int layer = 0;  ///< this layer, for `source`
};

/// What the sublayer keeps from its forward pass for its backward pass, in memory that the caller owns: the
/// choice, and the results of matrix products. Sorting rows and SwiGLU are cheaper to do again.
template <class T, space S = space::host>
struct moe_context {
  matrix_view<T, S> logits;                  // (N, E)
  matrix_view<std::int32_t, S> chosen;       // (N, k)
  matrix_view<T, S> weights;                 // (N, k)
  matrix_view<T, S> gate, up;                // (N k, I), sorted by expert
  matrix_view<T, S> shared_gate, shared_up;  // (N, I)

  /// In `memory`: a workspace, or a byte_count.
  template <class Memory>
  static moe_context take(Memory& memory, const moe_config& m, std::int64_t rows) {
    using dsv4::take;
    const std::int64_t k = m.num_experts_per_tok, inner = m.moe_intermediate_size;
    moe_context c;
    c.logits = take<T>(memory, rows, m.n_routed_experts);
    c.chosen = take<std::int32_t>(memory, rows, k);
    c.weights = take<T>(memory, rows, k);
    c.gate = take<T>(memory, rows * k, inner);
    c.up = take<T>(memory, rows * k, inner);
    c.shared_gate = take<T>(memory, rows, inner);
    c.shared_up = take<T>(memory, rows, inner);
    return c;
  }
};

namespace detail {
/// y = w2 swiglu(w1 x, w3 x) for the rows of the experts in `offsets`; h is scratch. `gate` and `up` keep the
/// products, where they are not empty; an empty y then is not computed.
template <moe_config M, numerics_config Q, class T, space S, policy P>
void run_experts(const P& p, basic_workspace<S>& w,
                 const expert_stacks<T, typename storage_types<T, Q>::expert, S>& experts,
                 vector_view<const std::int64_t, S> offsets, matrix_view<const T, S> x,
                 vector_view<const T, S> weights, matrix_view<T, S> gate, matrix_view<T, S> up,
                 matrix_view<T, S> h, matrix_view<T, S> y) {
  const workspace_scope scope(w);
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;
  if (gate.data) {
    using product = grouped_linear<T, S, typename stored::expert, X>;
    const auto x_in = as_activation<X>(p, w, x);
    product::forward(p, {x_in, offsets, experts.w1}, {gate});
    product::forward(p, {x_in, offsets, experts.w3}, {up});
  }
  if (!y.data) return;
  if (gate.data)
    swiglu<T, S>::forward(p, {gate, up, weights, M.swiglu_limit}, {h});
  else
    grouped_gated_linear<T, S, typename stored::expert, X>::forward(
        p, w, {x, offsets, experts.w1, experts.w3, weights, M.swiglu_limit}, {h});
  grouped_activation_linear<T, S, typename stored::expert, X>::forward(p, w, {h, offsets, experts.w2}, {y});
}
}  // namespace detail

/// y = shared(x) + sum over the chosen experts (docs/blocks/moe.md). `tokens` are read in hash layers.
/// `context` keeps what moe_backward needs; an empty y then is not computed. y is not x.
template <moe_config M, numerics_config Q, class T, space S, policy P>
void moe(const P& p, basic_workspace<S>& w, const moe_parameters<T, Q, S>& parameters,
         vector_view<const std::int32_t, S> tokens, matrix_view<const T, S> x, matrix_view<T, S> y,
         const moe_context<T, S>* context = nullptr) {
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "moe");
  const bool training = context != nullptr;
  const moe_context<T, S> keep = training ? *context : moe_context<T, S>{};
  const auto kept_or = [&](const auto& kept, auto... extents) {
    using value = typename std::remove_cvref_t<decltype(kept)>::value_type;
    return kept.data ? kept : take<value>(w, extents...);
  };
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;
  const std::int64_t rows = x.extent[0], width = x.extent[1], k = M.num_experts_per_tok, pairs = rows * k;
  const std::int64_t inner = M.moe_intermediate_size, count = M.n_routed_experts;

  // The shared expert, beside the routed ones and their choice.
  detail::branch<P, S> aside(p, w, !training && rows <= detail::rows_for_branches);
  const auto logits = kept_or(keep.logits, rows, count);
  const auto chosen = kept_or(keep.chosen, rows, k);
  const auto weights = kept_or(keep.weights, rows, k);
  linear<T, S, typename stored::wide>::forward(p, {x, parameters.gate}, {logits});
  const auto offsets = take<std::int64_t>(w, count + 1);
  const auto order = take<std::int64_t>(w, pairs), inverse = take<std::int64_t>(w, pairs);
  const auto x_sorted = take<T>(w, pairs, width);
  const auto weight_sorted = take<T>(w, pairs);
  route_dispatch<T, S>::forward(
      p, {{logits, parameters.gate_bias, parameters.tid2eid, tokens, M.routed_scaling_factor}, x},
      {{chosen, weights}, {offsets, order, x_sorted, weight_sorted}});

  {
    const workspace_scope shared(w);
    using product = linear<T, S, typename stored::linear, X>;
    const auto h = take<T>(w, rows, inner);
    if (training) {
      const auto x_in = as_activation<X>(p, w, x);
      product::forward(p, {x_in, parameters.shared_w1}, {keep.shared_gate});
      product::forward(p, {x_in, parameters.shared_w3}, {keep.shared_up});
      if (y.data) swiglu<T, S>::forward(p, {keep.shared_gate, keep.shared_up, {}, M.swiglu_limit}, {h});
    } else {
      gated_linear<T, S, typename stored::linear, X>::forward(
          aside.policy(), w, {x, parameters.shared_w1, parameters.shared_w3, M.swiglu_limit}, {h});
    }
    if (y.data)
      activation_linear<T, S, typename stored::linear, X>::forward(aside.policy(), w,
                                                                   {h, parameters.shared_w2}, {y});
  }

  const auto y_sorted = y.data ? take<T>(w, pairs, width) : matrix_view<T, S>();
  const auto h = take<T>(w, pairs, inner);
  const auto run = [&](const auto& experts, vector_view<const std::int64_t, S> own, std::int64_t first,
                       std::int64_t n) {
    const auto part = [&](const matrix_view<T, S>& m) { return m.data ? m.rows(first, n) : m; };
    detail::run_experts<M, Q, T, S>(p, w, experts, own, x_sorted.rows(first, n), weight_sorted.rows(first, n),
                                    part(keep.gate), part(keep.up), h.rows(first, n), part(y_sorted));
  };
  if constexpr (S == space::host) {
    if (parameters.source) {
      std::vector<std::int64_t> needed;
      for (std::int64_t e = 0; e < count; ++e)
        if (offsets(e + 1) > offsets(e)) needed.push_back(e);
      const auto own = take<std::int64_t>(w, count + 1);
      for (std::span<const std::int64_t> left(needed); !left.empty();) {
        expert_stacks<T, typename stored::expert> present;
        const std::int64_t n = parameters.source->acquire(parameters.layer, left, present);
        // The other experts have no rows this time.
        const std::int64_t begin = offsets(left.front()),
                           end = offsets(left[static_cast<std::size_t>(n - 1)] + 1);
        for (std::int64_t e = 0; e <= count; ++e) own(e) = std::clamp(offsets(e), begin, end) - begin;
        run(present, own, begin, end - begin);
        left = left.subspan(static_cast<std::size_t>(n));
      }
    } else {
      run(parameters.experts, offsets, 0, pairs);
    }
  } else {
    run(parameters.experts, offsets, 0, pairs);
  }
  aside.join();
  if (y.data) expert_combine<T, S>::forward(p, {y_sorted, order, y}, {y, inverse});
}

}  // namespace dsv4
