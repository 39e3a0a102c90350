// SPDX-License-Identifier: Apache-2.0
/// Compile-time rules of a model_config. Each broken rule is one readable error that names the field.
#pragma once

#include <dsv4/config/model_config.hpp>

namespace dsv4 {

/// True, or a compile error per broken rule. Use as `static_assert(valid<my_config>())`.
template <model_config C>
consteval bool valid() {
  constexpr attention_config a = C.attention;
  constexpr moe_config m = C.moe;
  constexpr hyper_connection_config h = C.hyper_connection;
  constexpr bool sparse = C.layers.number_of(attention_kind::csa) > 0;
  constexpr bool heavy = C.layers.number_of(attention_kind::hca) > 0;
  static_assert(C.vocab_size > 0, "model_config.vocab_size must be positive");
  static_assert(C.hidden_size > 0, "model_config.hidden_size must be positive");
  static_assert(C.layers.count > 0, "model_config.layers must have at least one layer");
  static_assert(C.layers.count <= layer_schedule::capacity,
                "model_config.layers must have at most 128 layers");
  static_assert(C.rms_norm_eps > 0, "model_config.rms_norm_eps must be positive");
  static_assert(C.max_position_embeddings > 0, "model_config.max_position_embeddings must be positive");
  static_assert(C.num_nextn_predict_layers == 0 || C.num_nextn_predict_layers == 1,
                "model_config.num_nextn_predict_layers must be 0 or 1");
  static_assert(C.bos_token_id >= 0 && C.bos_token_id < C.vocab_size,
                "model_config.bos_token_id must be a token of the vocabulary");
  static_assert(C.eos_token_id >= 0 && C.eos_token_id < C.vocab_size,
                "model_config.eos_token_id must be a token of the vocabulary");

  static_assert(a.num_attention_heads > 0, "attention.num_attention_heads must be positive");
  static_assert(a.head_dim > 0, "attention.head_dim must be positive");
  static_assert(a.qk_rope_head_dim > 0 && a.qk_rope_head_dim % 2 == 0,
                "attention.qk_rope_head_dim must be positive and even: it is rotated in pairs");
  static_assert(a.qk_rope_head_dim <= a.head_dim, "attention.qk_rope_head_dim must not exceed head_dim");
  static_assert(a.qk_rope_head_dim <= 128, "attention.qk_rope_head_dim must not exceed 128");
  static_assert(a.q_lora_rank > 0, "attention.q_lora_rank must be positive");
  static_assert(a.o_groups > 0 && a.num_attention_heads % a.o_groups == 0,
                "attention.o_groups must divide num_attention_heads");
  static_assert(a.o_lora_rank > 0, "attention.o_lora_rank must be positive");
  static_assert(a.sliding_window > 0, "attention.sliding_window must be positive");
  static_assert(!sparse || a.csa_compress_ratio > 1, "attention.csa_compress_ratio must be at least 2");
  static_assert(!heavy || a.hca_compress_ratio > 1, "attention.hca_compress_ratio must be at least 2");
  static_assert(!sparse || a.index_n_heads > 0, "attention.index_n_heads must be positive");
  static_assert(!sparse || a.index_head_dim >= a.qk_rope_head_dim,
                "attention.index_head_dim must not be smaller than qk_rope_head_dim");
  static_assert(!sparse || a.index_topk > 0, "attention.index_topk must be positive");
  static_assert(a.rope.rope_theta > 1, "rope.rope_theta must be greater than 1");
  static_assert(a.rope.compress_rope_theta > 1, "rope.compress_rope_theta must be greater than 1");
  static_assert(a.rope.yarn_factor >= 1, "rope.yarn_factor must be at least 1");
  static_assert(a.rope.beta_fast >= a.rope.beta_slow && a.rope.beta_slow > 0,
                "rope.beta_fast must not be smaller than rope.beta_slow, which must be positive");
  static_assert(a.rope.original_max_position_embeddings > 0,
                "rope.original_max_position_embeddings must be positive");

  static_assert(m.n_routed_experts > 0, "moe.n_routed_experts must be positive");
  static_assert(m.n_shared_experts == 1, "moe.n_shared_experts must be 1: V4 has one shared expert");
  static_assert(m.num_experts_per_tok > 0 && m.num_experts_per_tok <= m.n_routed_experts,
                "moe.num_experts_per_tok must be positive and not exceed n_routed_experts");
  static_assert(m.moe_intermediate_size > 0, "moe.moe_intermediate_size must be positive");
  static_assert(m.num_hash_layers >= 0 && m.num_hash_layers <= C.layers.count,
                "moe.num_hash_layers must not exceed the number of layers");
  static_assert(m.routed_scaling_factor > 0, "moe.routed_scaling_factor must be positive");
  static_assert(m.swiglu_limit > 0, "moe.swiglu_limit must be positive");

  static_assert(h.hc_mult > 0 && h.hc_mult <= 16, "hyper_connection.hc_mult must be from 1 to 16");
  static_assert(h.hc_sinkhorn_iters > 0, "hyper_connection.hc_sinkhorn_iters must be positive");
  static_assert(h.hc_eps >= 0, "hyper_connection.hc_eps must not be negative");
  return true;
}

}  // namespace dsv4
