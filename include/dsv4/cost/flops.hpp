// SPDX-License-Identifier: Apache-2.0
/// Floating-point operations by arithmetic: of one more token, of a prompt, of a training step.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/config/recompute.hpp>
#include <dsv4/cost/component.hpp>
#include <dsv4/cost/weights.hpp>

#include <cstdint>

namespace dsv4::cost {

/// Operations, two to a multiply-add, by the arithmetic of the released models. Only products are counted:
/// norms, rotations and activations are noise beside them.
struct flop_count {
  std::int64_t fp4_fp8 = 0;  ///< routed experts: FP4 weights, FP8 inputs
  std::int64_t fp8 = 0;      ///< linear layers
  std::int64_t bf16 = 0;     ///< compressors, router, mHC, indexer head weights, head
  std::int64_t index = 0;    ///< indexer scores: FP4 in V4, FP8 in V3.2
  std::int64_t core = 0;     ///< scores and weighted values of attention, in BF16

  constexpr std::int64_t raw() const { return fp4_fp8 + fp8 + bf16 + index + core; }
  friend constexpr flop_count operator+(const flop_count& a, const flop_count& b) {
    return {a.fp4_fp8 + b.fp4_fp8, a.fp8 + b.fp8, a.bf16 + b.bf16, a.index + b.index, a.core + b.core};
  }
  friend constexpr flop_count operator*(const flop_count& a, std::int64_t n) {
    return {a.fp4_fp8 * n, a.fp8 * n, a.bf16 * n, a.index * n, a.core * n};
  }
  friend constexpr bool operator==(const flop_count&, const flop_count&) = default;
};

/// Twice the FP8 operations that take as long: BF16 counts double, FP4 x FP4 half, and FP4 x FP8 as FP8. This
/// is the accounting under which the announced ratios hold. Twice, so that it is a whole number.
constexpr std::int64_t twice_fp8_equivalent(const flop_count& f, bool fp4_index) {
  return 4 * (f.bf16 + f.core) + 2 * (f.fp8 + f.fp4_fp8) + (fp4_index ? 1 : 2) * f.index;
}

namespace detail {
/// What a product with one weight costs one token.
constexpr flop_count product_flops(const weight& w) {
  const std::int64_t n = 2 * w.rows * w.columns * w.used;
  flop_count f;
  switch (w.stored) {
    case weight_class::expert:
      f.fp4_fp8 = n;
      break;
    case weight_class::linear:
      f.fp8 = n;
      break;
    default:
      f.bf16 = n;
  }
  return f;
}

/// Sums over t = 1 ... n of min(most, floor(t / m)), and of min(most, t): exact, without a loop.
constexpr std::int64_t sum_of_quotients(std::int64_t n, std::int64_t m) {
  const std::int64_t q = n / m;  // q whole blocks of m equal quotients 0 ... q - 1, then n % m + 1 times q
  return m * (q * (q - 1) / 2) + q * (n - q * m + 1);
}
constexpr std::int64_t sum_of_bounded(std::int64_t n, std::int64_t m, std::int64_t most) {
  if (n / m < most) return sum_of_quotients(n, m);
  const std::int64_t reached = most * m;  // from here on it is `most`
  return sum_of_quotients(reached - 1, m) + most * (n - reached + 1);
}

/// What does not depend on the context, for layer `kind`.
constexpr per_component<flop_count> layer_products(const model_config& c, attention_kind kind) {
  per_component<flop_count> sum;
  for_each_layer_weight(c, kind, false,
                        [&](const weight& w) { sum[w.part] = sum[w.part] + product_flops(w); });
  return sum;
}
constexpr per_component<flop_count> outer_products(const model_config& c) {
  per_component<flop_count> sum;
  for_each_outer_weight(c, [&](const weight& w) { sum[w.part] = sum[w.part] + product_flops(w); });
  return sum;
}

/// Attention over `keys` keys and index scores of `scored` entries, all tokens of a call together.
constexpr per_component<flop_count> attention_flops(const attention_config& a, std::int64_t keys,
                                                    std::int64_t scored) {
  per_component<flop_count> f;
  f[component::attention].core = 2 * std::int64_t{a.num_attention_heads} * 2 * a.head_dim * keys;
  f[component::indexer].index = 2 * std::int64_t{a.index_n_heads} * a.index_head_dim * scored;
  return f;
}
}  // namespace detail

/// One layer, one token that is the `context`-th of its sequence. Index scores are counted from the first
/// entry on, though an engine may leave them out while all entries are attended.
constexpr per_component<flop_count> decode_flops(const model_config& c, attention_kind kind,
                                                 std::int64_t context) {
  const attention_config& a = c.attention;
  std::int64_t keys = context < a.sliding_window ? context : a.sliding_window, scored = 0;
  if (kind != attention_kind::sliding) {
    const std::int64_t entries = context / a.compress_ratio(kind);
    const bool csa = kind == attention_kind::csa;
    scored = csa ? entries : 0;
    keys += csa && entries > a.index_topk ? a.index_topk : entries;
  }
  return detail::layer_products(c, kind) + detail::attention_flops(a, keys, scored);
}

/// The whole model, one token that is the `context`-th, with its logits. Without multi-token prediction.
constexpr per_component<flop_count> decode_flops(const model_config& c, std::int64_t context) {
  per_component<flop_count> sum = detail::outer_products(c);
  for (const attention_kind kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca}) {
    const auto layer = decode_flops(c, kind, context);
    for (std::size_t i = 0; i < components; ++i)
      sum.values[i] = sum.values[i] + layer.values[i] * c.layers.number_of(kind);
  }
  return sum;
}

/// One layer, a prompt of `tokens` tokens from the first on.
constexpr per_component<flop_count> prefill_flops(const model_config& c, attention_kind kind,
                                                  std::int64_t tokens) {
  const attention_config& a = c.attention;
  std::int64_t keys = detail::sum_of_bounded(tokens, 1, a.sliding_window), scored = 0;
  if (kind == attention_kind::csa) {
    scored = detail::sum_of_quotients(tokens, a.csa_compress_ratio);
    keys += detail::sum_of_bounded(tokens, a.csa_compress_ratio, a.index_topk);
  } else if (kind == attention_kind::hca) {
    keys += detail::sum_of_quotients(tokens, a.hca_compress_ratio);
  }
  auto sum = detail::layer_products(c, kind);
  for (auto& f : sum.values) f = f * tokens;
  return sum + detail::attention_flops(a, keys, scored);
}

/// The whole model, a prompt of `tokens` tokens with the logits of `logits` of them.
constexpr per_component<flop_count> prefill_flops(const model_config& c, std::int64_t tokens,
                                                  std::int64_t logits = 1) {
  per_component<flop_count> sum = detail::outer_products(c);
  for (auto& f : sum.values) f = f * logits;
  for (const attention_kind kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca}) {
    const auto layer = prefill_flops(c, kind, tokens);
    for (std::size_t i = 0; i < components; ++i)
      sum.values[i] = sum.values[i] + layer.values[i] * c.layers.number_of(kind);
  }
  return sum;
}

/// Forward and backward passes of a training step over one document of `tokens` tokens: every product has two
/// in the backward pass. With `recompute.sublayers` the layers' forward pass happens twice.
constexpr per_component<flop_count> training_flops(const model_config& c, std::int64_t tokens,
                                                   const recompute_policy& recompute = {}) {
  auto sum = prefill_flops(c, tokens, tokens);
  for (std::size_t i = 0; i < components; ++i) {
    const auto part = static_cast<component>(i);
    const bool again = recompute.sublayers && part != component::head && part != component::hyper_connection;
    sum.values[i] = sum.values[i] * (again ? 4 : 3);
  }
  return sum;
}

}  // namespace dsv4::cost
