// SPDX-License-Identifier: Apache-2.0
/// The configurations of the oracle's files in tests/data: what the public peer lacks.
#pragma once

#include "support/golden.hpp"

namespace dsv4::testing {

inline constexpr model_config mtp_case = [] {
  model_config c = golden(schedule({S, C, H}), 1);
  c.moe.routed_scaling_factor = 2.5;
  c.num_nextn_predict_layers = 1;
  return c;
}();

inline constexpr model_config odd_case = [] {
  model_config c = golden(schedule({C, S, H, C}), 1);
  c.vocab_size = 50;
  c.hidden_size = 60;
  c.attention.num_attention_heads = 6;
  c.attention.head_dim = 20;
  c.attention.qk_rope_head_dim = 4;
  c.attention.q_lora_rank = 14;
  c.attention.o_groups = 3;
  c.attention.o_lora_rank = 10;
  c.attention.sliding_window = 7;
  c.attention.hca_compress_ratio = 8;
  c.attention.index_n_heads = 5;
  c.attention.index_head_dim = 8;
  c.attention.index_topk = 3;
  c.attention.rope.rope_theta = 5000;
  c.attention.rope.compress_rope_theta = 90000;
  c.moe.n_routed_experts = 5;
  c.moe.moe_intermediate_size = 18;
  c.moe.routed_scaling_factor = 1.75;
  c.moe.swiglu_limit = 1;
  c.hyper_connection.hc_mult = 3;
  return c;
}();

inline constexpr model_config hadamard_fp4_case = [] {
  model_config c = golden(schedule({C, H, C}), 0);
  c.attention.index_head_dim = 32;
  return c;
}();

inline constexpr model_config kv_fp8_case = [] {
  model_config c = golden(schedule({S, C, H}), 0);
  c.vocab_size = 64;
  c.attention.head_dim = 160;
  c.attention.qk_rope_head_dim = 32;
  c.attention.index_head_dim = 64;
  c.attention.rope.yarn_factor = 16;
  c.attention.rope.original_max_position_embeddings = 64;
  return c;
}();

inline constexpr model_config released_case = [] {
  model_config c = kv_fp8_case;
  c.hidden_size = 144;
  c.attention.q_lora_rank = 40;
  c.attention.o_lora_rank = 24;
  c.moe.moe_intermediate_size = 48;
  c.moe.num_hash_layers = 1;
  c.num_nextn_predict_layers = 1;
  return c;
}();

}  // namespace dsv4::testing
