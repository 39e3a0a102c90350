// SPDX-License-Identifier: Apache-2.0
/// DeepSeekMoE: router, routed experts, shared expert.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/expert_dispatch.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/route.hpp>
#include <dsv4/ops/swiglu.hpp>

namespace dsv4 {

template <class T, space S = space::host>
struct moe_parameters {
  matrix_view<T, S> gate;                  // (E, D)
  vector_view<T, S> gate_bias;             // (E), empty in a hash layer
  matrix_view<std::int32_t, S> tid2eid;    // (V, k), empty otherwise
  tensor_view<T, S> w1, w3;                // (E, I, D) gate and up projection
  tensor_view<T, S> w2;                    // (E, D, I) down projection
  matrix_view<T, S> shared_w1, shared_w3;  // (I, D)
  matrix_view<T, S> shared_w2;             // (D, I)
};

/// y = shared(x) + sum over the chosen experts (specification, section 8). `tokens` are read in hash layers.
template <moe_config M, class T, space S, policy P>
void moe(const P& p, workspace& w, const moe_parameters<T, S>& parameters,
         vector_view<const std::int32_t, S> tokens, matrix_view<const T, S> x, matrix_view<T, S> y) {
  workspace::scope scope(w);
  const std::int64_t rows = x.extent[0], width = x.extent[1], k = M.num_experts_per_tok, pairs = rows * k;
  const std::int64_t inner = M.moe_intermediate_size;

  const auto logits = w.take<T>(rows, M.n_routed_experts);
  const auto experts = w.take<std::int32_t>(rows, k);
  const auto weights = w.take<T>(rows, k);
  linear<T, S>::forward(p, {x, parameters.gate}, {logits});
  route<T, S>::forward(p, {logits, parameters.gate_bias, parameters.tid2eid, tokens, M.routed_scaling_factor},
                       {experts, weights});

  {
    workspace::scope shared(w);
    const auto gate = w.take<T>(rows, inner), up = w.take<T>(rows, inner);
    linear<T, S>::forward(p, {x, parameters.shared_w1}, {gate});
    linear<T, S>::forward(p, {x, parameters.shared_w3}, {up});
    swiglu<T, S>::forward(p, {gate, up, {}, M.swiglu_limit}, {gate});
    linear<T, S>::forward(p, {gate, parameters.shared_w2}, {y});
  }

  const auto offsets = w.take<std::int64_t>(M.n_routed_experts + 1);
  const auto order = w.take<std::int64_t>(pairs), inverse = w.take<std::int64_t>(pairs);
  const auto x_sorted = w.take<T>(pairs, width), y_sorted = w.take<T>(pairs, width);
  const auto weight_sorted = w.take<T>(pairs);
  const auto gate = w.take<T>(pairs, inner), up = w.take<T>(pairs, inner);
  expert_dispatch<T, S>::forward(p, {x, experts, weights}, {offsets, order, x_sorted, weight_sorted});
  grouped_linear<T, S>::forward(p, {x_sorted, offsets, parameters.w1}, {gate});
  grouped_linear<T, S>::forward(p, {x_sorted, offsets, parameters.w3}, {up});
  swiglu<T, S>::forward(p, {gate, up, weight_sorted, M.swiglu_limit}, {gate});
  grouped_linear<T, S>::forward(p, {gate, offsets, parameters.w2}, {y_sorted});
  expert_combine<T, S>::forward(p, {y_sorted, order, y}, {y, inverse});
}

}  // namespace dsv4
