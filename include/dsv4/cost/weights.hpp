// SPDX-License-Identifier: Apache-2.0
/// Every weight of a configuration: how many, in how many bytes, and which of them a token multiplies with.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/config/numerics.hpp>
#include <dsv4/config/parameter_count.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/component.hpp>
#include <dsv4/numeric/block_scaled.hpp>

#include <cstdint>

namespace dsv4::cost {

/// Which of the formats of a numerics_config a weight is stored in.
enum class weight_class : std::uint8_t {
  scalar,  ///< norms, sinks, biases, mHC: the model's scalar type
  wide,    ///< embedding, head, router, compressors, indexer head weights
  linear,  ///< attention and MTP projections, shared expert, index queries
  expert,  ///< routed experts
  table,   ///< 32-bit integers: expert choices by token id; no parameter
};

/// `count` matrices of rows x columns (vectors have one row), of which one token multiplies with `used`.
struct weight {
  component part;
  weight_class stored;
  std::int64_t rows, columns;
  std::int64_t count = 1, used = 1;
  bool trained_by_muon = false;  ///< else by AdamW, or by no optimiser

  constexpr std::int64_t elements() const { return rows * columns * count; }
};

namespace detail {
template <class F>
constexpr void for_each_compressor_weight(component part, std::int64_t hidden, std::int64_t dim,
                                          std::int64_t ratio, bool overlap, const F& f) {
  const std::int64_t width = dim * (overlap ? 2 : 1);
  f(weight{part, weight_class::wide, width, hidden, 2, 2, true});  // wkv, wgate
  f(weight{part, weight_class::scalar, ratio, width, 1, 0});       // position bias
  f(weight{part, weight_class::scalar, 1, dim, 1, 0});             // norm
}

template <class F>
constexpr void for_each_mixer_weight(const model_config& c, std::int64_t rows, std::int64_t scales,
                                     const F& f) {
  const component part = component::hyper_connection;
  f(weight{part, weight_class::scalar, rows, std::int64_t{c.hyper_connection.hc_mult} * c.hidden_size, 1, 1,
           true});
  f(weight{part, weight_class::scalar, 1, rows + scales, 1, 0});
}
}  // namespace detail

/// Calls f(weight) for the weights of one layer.
template <class F>
constexpr void for_each_layer_weight(const model_config& c, attention_kind kind, bool hashed, const F& f) {
  const attention_config& a = c.attention;
  const moe_config& e = c.moe;
  const std::int64_t d = c.hidden_size, heads_dim = std::int64_t{a.num_attention_heads} * a.head_dim;
  const auto linear = [&](component part, std::int64_t rows, std::int64_t columns, std::int64_t count = 1) {
    f(weight{part, weight_class::linear, rows, columns, count, count, true});
  };
  const auto vector = [&](component part, std::int64_t n) {
    f(weight{part, weight_class::scalar, 1, n, 1, 0});
  };

  linear(component::attention, a.q_lora_rank, d);
  linear(component::attention, heads_dim, a.q_lora_rank);
  linear(component::attention, a.head_dim, d);
  linear(component::attention, a.o_lora_rank, heads_dim / a.o_groups, a.o_groups);
  linear(component::attention, d, std::int64_t{a.o_groups} * a.o_lora_rank);
  vector(component::attention, 2 * d + a.q_lora_rank + a.head_dim + a.num_attention_heads);
  if (kind != attention_kind::sliding)
    detail::for_each_compressor_weight(component::compressor, d, a.head_dim, a.compress_ratio(kind),
                                       kind == attention_kind::csa, f);
  if (kind == attention_kind::csa) {
    linear(component::indexer, std::int64_t{a.index_n_heads} * a.index_head_dim, a.q_lora_rank);
    f(weight{component::indexer, weight_class::wide, a.index_n_heads, d, 1, 1, true});
    detail::for_each_compressor_weight(component::indexer, d, a.index_head_dim, a.csa_compress_ratio, true,
                                       f);
  }
  for (int site = 0; site < 2; ++site) detail::for_each_mixer_weight(c, c.hyper_connection.mixes(), 3, f);

  f(weight{component::router, weight_class::wide, e.n_routed_experts, d, 1, 1, true});
  if (hashed)
    f(weight{component::router, weight_class::table, c.vocab_size, e.num_experts_per_tok, 1, 0});
  else
    vector(component::router, e.n_routed_experts);
  const std::int64_t inner = e.moe_intermediate_size, k = e.num_experts_per_tok;
  f(weight{component::routed_experts, weight_class::expert, inner, d, 2 * std::int64_t{e.n_routed_experts},
           2 * k, true});
  f(weight{component::routed_experts, weight_class::expert, d, inner, e.n_routed_experts, k, true});
  linear(component::shared_expert, inner, d, 2 * std::int64_t{e.n_shared_experts});
  linear(component::shared_expert, d, inner, e.n_shared_experts);
}

/// Calls f(weight) for what lies outside of the layers: embedding, last mixer, norm and head.
template <class F>
constexpr void for_each_outer_weight(const model_config& c, const F& f) {
  f(weight{component::embedding, weight_class::wide, c.vocab_size, c.hidden_size, 1, 0});
  detail::for_each_mixer_weight(c, c.hyper_connection.hc_mult, 1, f);
  f(weight{component::head, weight_class::scalar, 1, c.hidden_size, 1, 0});
  f(weight{component::head, weight_class::wide, c.vocab_size, c.hidden_size});
}

/// Calls f(weight) for those of the multi-token-prediction block, all under component::mtp. Nothing without
/// one.
template <class F>
constexpr void for_each_mtp_weight(const model_config& c, const F& f) {
  if (c.num_nextn_predict_layers == 0) return;
  const auto own = [&](weight w) {
    w.part = component::mtp;
    f(w);
  };
  own({component::mtp, weight_class::linear, c.hidden_size, c.hidden_size, 2, 2, true});
  own({component::mtp, weight_class::scalar, 1, 3 * std::int64_t{c.hidden_size}, 1, 0});
  detail::for_each_mixer_weight(c, c.hyper_connection.hc_mult, 1, own);
  for_each_layer_weight(c, attention_kind::sliding, false, own);
}

/// Calls f(weight) for all of them.
template <class F>
constexpr void for_each_weight(const model_config& c, const F& f) {
  for_each_outer_weight(c, f);
  for (int i = 0; i < c.num_hidden_layers(); ++i) for_each_layer_weight(c, c.kind(i), c.hashed(i), f);
  for_each_mtp_weight(c, f);
}

/// Parameters by component; tables are none.
constexpr per_component<std::int64_t> parameters(const model_config& c) {
  per_component<std::int64_t> sum;
  for_each_weight(c, [&](const weight& w) {
    if (w.stored != weight_class::table) sum[w.part] += w.elements();
  });
  return sum;
}

/// Bytes of one weight under `q`, with a scalar type of `scalar_bytes`; block scales included.
constexpr std::int64_t bytes_of(const weight& w, const numerics_config& q, std::int64_t scalar_bytes = 4) {
  if (w.stored == weight_class::table) return w.elements() * 4;
  const weight_format format = w.stored == weight_class::wide     ? q.wide
                               : w.stored == weight_class::linear ? q.linear
                               : w.stored == weight_class::expert ? q.expert
                                                                  : weight_format::scalar;
  switch (format) {
    case weight_format::bf16:
      return w.elements() * 2;
    case weight_format::fp8:
      return w.count * fp8_weight::bytes(w.rows, w.columns);
    case weight_format::mxfp4:
      return w.count * mxfp4::bytes(w.rows, w.columns);
    case weight_format::scalar:
      break;
  }
  return w.elements() * scalar_bytes;
}

/// Bytes of all weights and tables, by component.
constexpr per_component<std::int64_t> weight_bytes(const model_config& c, const numerics_config& q,
                                                   std::int64_t scalar_bytes = 4) {
  per_component<std::int64_t> sum;
  for_each_weight(c, [&](const weight& w) { sum[w.part] += bytes_of(w, q, scalar_bytes); });
  return sum;
}

static_assert(parameters(v4_pro).total() == count_parameters(v4_pro).with_mtp());
static_assert(parameters(v4_flash).total() == count_parameters(v4_flash).with_mtp());
static_assert(parameters(v4_flash)[component::mtp] == count_parameters(v4_flash).mtp);

}  // namespace dsv4::cost
