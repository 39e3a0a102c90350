// SPDX-License-Identifier: Apache-2.0
/// The model's shape as a structural value: a template argument on the host side.
/// Field names are those of the released `config.json`.
#pragma once

#include <dsv4/config/schedule.hpp>

#include <cstdint>

namespace dsv4 {

/// Rotary embedding constants. Sliding layers use `rope_theta` alone; CSA and HCA layers use
/// `compress_rope_theta` with YaRN (factor 1 is no scaling). There is no mscale.
struct rope_config {
  double rope_theta;
  double compress_rope_theta;
  double yarn_factor;
  double beta_fast, beta_slow;
  int original_max_position_embeddings;
  friend constexpr bool operator==(const rope_config&, const rope_config&) = default;
};

struct attention_config {
  int num_attention_heads;
  int head_dim;          ///< of queries and of the one shared key = value head
  int qk_rope_head_dim;  ///< the last dims of a head, rotated
  int q_lora_rank;
  int o_groups;
  int o_lora_rank;  ///< per group
  int sliding_window;
  int csa_compress_ratio;
  int hca_compress_ratio;
  int index_n_heads;
  int index_head_dim;
  int index_topk;
  rope_config rope;
  friend constexpr bool operator==(const attention_config&, const attention_config&) = default;

  /// Tokens per compressed entry; 0 for a sliding layer.
  constexpr int compress_ratio(attention_kind kind) const {
    return kind == attention_kind::csa   ? csa_compress_ratio
           : kind == attention_kind::hca ? hca_compress_ratio
                                         : 0;
  }
};

struct moe_config {
  int n_routed_experts;
  int n_shared_experts;
  int num_experts_per_tok;
  int moe_intermediate_size;
  int num_hash_layers;  ///< the first layers, routed by a table of token ids
  double routed_scaling_factor;
  double swiglu_limit;
  friend constexpr bool operator==(const moe_config&, const moe_config&) = default;
};

struct hyper_connection_config {
  int hc_mult;  ///< residual streams
  int hc_sinkhorn_iters;
  double hc_eps;
  friend constexpr bool operator==(const hyper_connection_config&, const hyper_connection_config&) = default;

  /// Rows of `fn` and `base`: pre, post and combination coefficients.
  constexpr int mixes() const { return (2 + hc_mult) * hc_mult; }
};

struct model_config {
  int vocab_size;
  int hidden_size;
  layer_schedule layers;
  attention_config attention;
  moe_config moe;
  hyper_connection_config hyper_connection;
  double rms_norm_eps;
  int max_position_embeddings;
  int num_nextn_predict_layers;  ///< 0 or 1 multi-token-prediction blocks
  int bos_token_id;
  int eos_token_id;
  friend constexpr bool operator==(const model_config&, const model_config&) = default;

  constexpr int num_hidden_layers() const { return layers.count; }
  /// Layer `num_hidden_layers()` is the multi-token-prediction block: sliding attention.
  constexpr attention_kind kind(int layer) const {
    return layer < layers.count ? layers[layer] : attention_kind::sliding;
  }
  constexpr bool hashed(int layer) const { return layer < layers.count && layer < moe.num_hash_layers; }
};

}  // namespace dsv4
