// SPDX-License-Identifier: Apache-2.0
/// The costs of DeepSeek-V3.2, multi-head latent attention with sparse attention: what V4 is measured
/// against.
#pragma once

#include <dsv4/cost/flops.hpp>

#include <cstdint>

namespace dsv4::cost {

/// The shape of DeepSeek-V3.2. Source: its released config.json.
struct mla_config {
  int vocab_size, hidden_size, layers, dense_layers;
  int heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, value_dim;
  int experts, experts_per_token, shared_experts, expert_width, dense_width;
  int index_heads, index_dim, index_topk;
};

inline constexpr mla_config deepseek_v32{.vocab_size = 129280,
                                         .hidden_size = 7168,
                                         .layers = 61,
                                         .dense_layers = 3,
                                         .heads = 128,
                                         .q_lora_rank = 1536,
                                         .kv_lora_rank = 512,
                                         .nope_dim = 128,
                                         .rope_dim = 64,
                                         .value_dim = 128,
                                         .experts = 256,
                                         .experts_per_token = 8,
                                         .shared_experts = 1,
                                         .expert_width = 2048,
                                         .dense_width = 18432,
                                         .index_heads = 64,
                                         .index_dim = 128,
                                         .index_topk = 2048};

namespace detail {
/// Elements of a layer's attention projections, and of its indexer's: queries and keys, head weights.
constexpr std::int64_t mla_projections(const mla_config& c) {
  const std::int64_t d = c.hidden_size, h = c.heads;
  return d * c.q_lora_rank + c.q_lora_rank * h * (c.nope_dim + c.rope_dim) +
         d * (c.kv_lora_rank + c.rope_dim) + c.kv_lora_rank * h * (c.nope_dim + c.value_dim) +
         h * c.value_dim * d;
}
constexpr std::int64_t mla_index_products(const mla_config& c) {
  return std::int64_t{c.q_lora_rank} * c.index_heads * c.index_dim +
         std::int64_t{c.hidden_size} * c.index_dim;
}
constexpr std::int64_t mla_index_weights(const mla_config& c) {
  return std::int64_t{c.hidden_size} * c.index_heads;
}
constexpr std::int64_t mla_expert(const mla_config& c) {
  return 3 * std::int64_t{c.hidden_size} * c.expert_width;
}

constexpr std::int64_t mla_parameters(const mla_config& c, std::int64_t experts, std::int64_t vocabularies) {
  const std::int64_t d = c.hidden_size, sparse = c.layers - c.dense_layers;
  const std::int64_t attention =
      mla_projections(c) + mla_index_products(c) + mla_index_weights(c) + 2 * c.index_dim;  // and a LayerNorm
  return vocabularies * c.vocab_size * d + c.layers * attention + c.dense_layers * 3 * d * c.dense_width +
         sparse * ((experts + c.shared_experts) * mla_expert(c) + c.experts * d);
}
}  // namespace detail

/// Parameters; those that a token uses are without the embedding. Norms of width d are left out.
constexpr std::int64_t parameters(const mla_config& c) { return detail::mla_parameters(c, c.experts, 2); }
constexpr std::int64_t active_parameters(const mla_config& c) {
  return detail::mla_parameters(c, c.experts_per_token, 1);
}

/// One token that is the `context`-th. Attention in its absorbed form: keys of kv_lora_rank + rope_dim
/// channels, values of kv_lora_rank.
constexpr flop_count decode_flops(const mla_config& c, std::int64_t context) {
  const std::int64_t d = c.hidden_size, sparse = c.layers - c.dense_layers,
                     keys = context < c.index_topk ? context : c.index_topk;
  flop_count f;
  f.fp8 = 2 * (c.layers * (detail::mla_projections(c) + detail::mla_index_products(c)) +
               c.dense_layers * 3 * d * c.dense_width +
               sparse * (c.experts_per_token + c.shared_experts) * detail::mla_expert(c));
  f.bf16 = 2 * (c.layers * detail::mla_index_weights(c) + sparse * c.experts * d + c.vocab_size * d);
  f.index = c.layers * 2 * std::int64_t{c.index_heads} * c.index_dim * context;
  f.core = c.layers * 2 * std::int64_t{c.heads} * (2 * c.kv_lora_rank + c.rope_dim) * keys;
  return f;
}

/// Latents in FP8 with a 32-bit scale per 128 channels beside rotated channels in BF16, 656 bytes, and FP8
/// indexer keys with a scale, 132 bytes.
constexpr std::int64_t cache_bytes(const mla_config& c, std::int64_t tokens) {
  const std::int64_t latent = c.kv_lora_rank + c.kv_lora_rank / 128 * 4 + 2 * c.rope_dim;
  return c.layers * tokens * (latent + c.index_dim + 4);
}

}  // namespace dsv4::cost
