// SPDX-License-Identifier: Apache-2.0
/// The released models and small ones of the same shape.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/config/parameter_count.hpp>
#include <dsv4/config/validate.hpp>

namespace dsv4 {

/// DeepSeek-V4-Flash, April 2026: 284B parameters, 13B active. Source: the released config.json.
inline constexpr model_config v4_flash{
    .vocab_size = 129280,
    .hidden_size = 4096,
    .layers = schedule({attention_kind::sliding, attention_kind::sliding})
                  .then({attention_kind::csa, attention_kind::hca}, 20)
                  .then(attention_kind::csa),
    .attention = {.num_attention_heads = 64,
                  .head_dim = 512,
                  .qk_rope_head_dim = 64,
                  .q_lora_rank = 1024,
                  .o_groups = 8,
                  .o_lora_rank = 1024,
                  .sliding_window = 128,
                  .csa_compress_ratio = 4,
                  .hca_compress_ratio = 128,
                  .index_n_heads = 64,
                  .index_head_dim = 128,
                  .index_topk = 512,
                  .rope = {.rope_theta = 10000,
                           .compress_rope_theta = 160000,
                           .yarn_factor = 16,
                           .beta_fast = 32,
                           .beta_slow = 1,
                           .original_max_position_embeddings = 65536}},
    .moe = {.n_routed_experts = 256,
            .n_shared_experts = 1,
            .num_experts_per_tok = 6,
            .moe_intermediate_size = 2048,
            .num_hash_layers = 3,
            .routed_scaling_factor = 1.5,
            .swiglu_limit = 10},
    .hyper_connection = {.hc_mult = 4, .hc_sinkhorn_iters = 20, .hc_eps = 1e-6},
    .rms_norm_eps = 1e-6,
    .max_position_embeddings = 1048576,
    .num_nextn_predict_layers = 1,
    .bos_token_id = 0,
    .eos_token_id = 1,
};

/// DeepSeek-V4-Pro, April 2026: 1.6T parameters, 49B active. Source: the released config.json.
inline constexpr model_config v4_pro = [] {
  model_config c = v4_flash;
  c.hidden_size = 7168;
  c.layers = schedule({attention_kind::hca, attention_kind::hca})
                 .then({attention_kind::csa, attention_kind::hca}, 29)
                 .then(attention_kind::csa);
  c.attention.num_attention_heads = 128;
  c.attention.q_lora_rank = 1536;
  c.attention.o_groups = 16;
  c.attention.index_topk = 1024;
  c.moe.n_routed_experts = 384;
  c.moe.moe_intermediate_size = 3072;
  c.moe.routed_scaling_factor = 2.5;
  return c;
}();

/// About 1M parameters on bytes: all three layer kinds, hash and learned routing, MTP. For tests and the
/// demo. Token 256 begins a text, 257 ends it.
inline constexpr model_config v4_nano = [] {
  model_config c = v4_flash;
  c.vocab_size = 258;
  c.hidden_size = 96;
  c.layers =
      schedule({attention_kind::sliding, attention_kind::csa, attention_kind::hca, attention_kind::csa});
  c.attention.num_attention_heads = 4;
  c.attention.head_dim = 48;
  c.attention.qk_rope_head_dim = 16;
  c.attention.q_lora_rank = 48;
  c.attention.o_groups = 2;
  c.attention.o_lora_rank = 48;
  c.attention.sliding_window = 32;
  c.attention.hca_compress_ratio = 16;
  c.attention.index_n_heads = 4;
  c.attention.index_head_dim = 32;
  c.attention.index_topk = 16;
  c.attention.rope.original_max_position_embeddings = 1024;
  c.moe.n_routed_experts = 8;
  c.moe.num_experts_per_tok = 2;
  c.moe.moe_intermediate_size = 64;
  c.moe.num_hash_layers = 1;
  c.max_position_embeddings = 16384;
  c.bos_token_id = 256;
  c.eos_token_id = 257;
  return c;
}();

/// About 100M parameters, for benchmarks on a CPU.
inline constexpr model_config v4_bench = [] {
  model_config c = v4_flash;
  c.vocab_size = 16384;
  c.hidden_size = 512;
  c.layers = schedule({attention_kind::sliding, attention_kind::sliding})
                 .then({attention_kind::csa, attention_kind::hca}, 3);
  c.attention.num_attention_heads = 8;
  c.attention.head_dim = 128;
  c.attention.qk_rope_head_dim = 32;
  c.attention.q_lora_rank = 256;
  c.attention.o_groups = 2;
  c.attention.o_lora_rank = 256;
  c.attention.index_n_heads = 8;
  c.attention.index_head_dim = 64;
  c.attention.index_topk = 64;
  c.moe.n_routed_experts = 16;
  c.moe.num_experts_per_tok = 4;
  c.moe.moe_intermediate_size = 384;
  c.max_position_embeddings = 65536;
  return c;
}();

static_assert(valid<v4_flash>() && valid<v4_pro>() && valid<v4_nano>() && valid<v4_bench>());

// The announced sizes, rounded as they were published.
namespace detail {
constexpr std::int64_t rounded(std::int64_t count, std::int64_t unit) { return (count + unit / 2) / unit; }
}  // namespace detail
static_assert(detail::rounded(count_parameters(v4_pro).main, 100'000'000) == 15730);         // 1573.0B
static_assert(detail::rounded(count_parameters(v4_pro).with_mtp(), 100'000'000) == 15988);   // 1598.8B
static_assert(detail::rounded(count_parameters(v4_pro).active, 10'000'000) == 4885);         // 48.85B
static_assert(detail::rounded(count_parameters(v4_flash).main, 10'000'000) == 28433);        // 284.33B
static_assert(detail::rounded(count_parameters(v4_flash).with_mtp(), 100'000'000) == 2909);  // 290.9B
static_assert(detail::rounded(count_parameters(v4_flash).active, 10'000'000) == 1327);       // 13.27B

}  // namespace dsv4
