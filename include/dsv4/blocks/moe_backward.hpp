// SPDX-License-Identifier: Apache-2.0
/// The backward of the MoE sublayer: the steps of `moe` in reverse.
#pragma once

#include <dsv4/blocks/moe.hpp>
#include <dsv4/ops/activation.hpp>

#include <cstdint>

namespace dsv4 {

/// Gradients of the sublayer's parameters: views in the scalar type, added to; empty ones are skipped.
template <class T, space S = space::host>
using moe_gradients = moe_parameters<T, numerics::float32, S>;

/// Nothing is added to the router's gradient.
struct no_router_loss {
  template <class... Arguments>
  void operator()(const Arguments&...) const {}
};

/// dx = and parameters' gradients +=, from dy: x and dy are (N, D), x as `moe` read it. The choice of experts
/// and the router's bias have no gradient. `router_loss(logits, chosen, dlogits)` may add the gradient of a
/// loss of its own, such as the balance loss, to dlogits (N, E). All experts must be present in `parameters`.
template <moe_config M, numerics_config Q, class T, space S, policy P, class RouterLoss = no_router_loss>
void moe_backward(const P& p, basic_workspace<S>& w, const moe_parameters<T, Q, S>& parameters,
                  matrix_view<const T, S> x, const moe_context<T, S>& context, matrix_view<const T, S> dy,
                  const moe_gradients<T, S>& gradients, matrix_view<T, S> dx,
                  const RouterLoss& router_loss = {}) {
  if (x.extent[0] == 0) return;
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "moe_backward");
  using stored = storage_types<T, Q>;
  using X = typename stored::activation;
  const std::int64_t rows = x.extent[0], width = x.extent[1], k = M.num_experts_per_tok, pairs = rows * k;
  const std::int64_t inner = M.moe_intermediate_size, count = M.n_routed_experts;
  const auto dweights = take<T>(w, rows, k);

  {  // The routed experts: y_sorted = w2 h,   h = swiglu(w1 x, w3 x) weight
    const workspace_scope routed(w);
    using product = grouped_linear<T, S, typename stored::expert, X>;
    const auto offsets = take<std::int64_t>(w, count + 1), order = take<std::int64_t>(w, pairs);
    const auto x_sorted = take<T>(w, pairs, width), dh = take<T>(w, pairs, inner);
    const auto weight_sorted = take<T>(w, pairs), dweight_sorted = take<T>(w, pairs);
    expert_dispatch<T, S>::forward(p, {x, context.chosen, context.weights},
                                   {offsets, order, x_sorted, weight_sorted});
    {
      const workspace_scope down(w);
      const auto dy_sorted = take<T>(w, pairs, width), h = take<T>(w, pairs, inner);
      expert_combine<T, S>::backward(p, w, {{}, order, {}}, {dy}, {dy_sorted});
      swiglu<T, S>::forward(p, {context.gate, context.up, weight_sorted, M.swiglu_limit}, {h});
      product::backward(p, w, {as_activation<X>(p, w, h), offsets, parameters.experts.w2}, {dy_sorted},
                        {dh, gradients.experts.w2});
    }
    const auto dup = take<T>(w, pairs, inner);
    swiglu<T, S>::backward(p, w, {context.gate, context.up, weight_sorted, M.swiglu_limit}, {dh},
                           {dh, dup, dweight_sorted});
    const auto dx_sorted = take<T>(w, pairs, width);
    const auto x_in = as_activation<X>(p, w, x_sorted);
    product::backward(p, w, {x_in, offsets, parameters.experts.w1}, {dh}, {dx_sorted, gradients.experts.w1});
    product::backward(p, w, {x_in, offsets, parameters.experts.w3}, {dup},
                      {dx_sorted, gradients.experts.w3, true});
    expert_dispatch<T, S>::backward(p, w, {x, context.chosen, context.weights}, {order},
                                    {dx_sorted, dweight_sorted}, {dx, dweights});
  }

  {  // The shared expert.
    const workspace_scope shared(w);
    using product = linear<T, S, typename stored::linear, X>;
    const auto h = take<T>(w, rows, inner), dh = take<T>(w, rows, inner), dup = take<T>(w, rows, inner);
    swiglu<T, S>::forward(p, {context.shared_gate, context.shared_up, {}, M.swiglu_limit}, {h});
    product::backward(p, w, {as_activation<X>(p, w, h), parameters.shared_w2}, {dy},
                      {dh, gradients.shared_w2});
    swiglu<T, S>::backward(p, w, {context.shared_gate, context.shared_up, {}, M.swiglu_limit}, {dh},
                           {dh, dup, {}});
    const auto x_in = as_activation<X>(p, w, x);
    product::backward(p, w, {x_in, parameters.shared_w1}, {dh}, {dx, gradients.shared_w1, true});
    product::backward(p, w, {x_in, parameters.shared_w3}, {dup}, {dx, gradients.shared_w3, true});
  }

  // The router.
  const auto dlogits = take<T>(w, rows, count);
  route<T, S>::backward(p, w, {context.logits, {}, {}, {}, M.routed_scaling_factor}, {context.chosen},
                        {dweights}, {dlogits});
  router_loss(context.logits, context.chosen, dlogits);
  linear<T, S, typename stored::wide>::backward(p, w, {x, parameters.gate}, {dlogits},
                                                {dx, gradients.gate, true});
}

}  // namespace dsv4
