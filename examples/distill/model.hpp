// SPDX-License-Identifier: Apache-2.0
/// The model of the distillation example: v4_nano, smaller, with every kind of layer, on ASCII.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu.hpp>
#include <dsv4/train/rollout.hpp>
#include <dsv4/train/rollout_trainer.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace distill {

/// Windows, groups and the number of selected entries are so small that texts of 15 characters leave the
/// window and have more entries than the indexer may select.
inline constexpr dsv4::model_config config = [] {
  using enum dsv4::attention_kind;
  dsv4::model_config c = dsv4::v4_nano;
  c.vocab_size = 128;
  c.hidden_size = 48;
  c.layers = dsv4::schedule({sliding, csa, hca, csa});
  c.attention.head_dim = 24;
  c.attention.qk_rope_head_dim = 8;
  c.attention.q_lora_rank = 32;
  c.attention.o_lora_rank = 32;
  c.attention.sliding_window = 8;
  c.attention.csa_compress_ratio = 2;
  c.attention.hca_compress_ratio = 4;
  c.attention.index_n_heads = 2;
  c.attention.index_head_dim = 16;
  c.attention.index_topk = 4;
  c.moe.n_routed_experts = 4;
  c.moe.moe_intermediate_size = 48;
  c.hyper_connection.hc_mult = 2;
  c.hyper_connection.hc_sinkhorn_iters = 5;
  c.num_nextn_predict_layers = 0;
  c.bos_token_id = 0;
  c.eos_token_id = '\n';
  return c;
}();
static_assert(dsv4::valid<config>());

using trainer = dsv4::rollout_trainer<config>;
using weights = dsv4::model_parameters<float>;
using weight_store = dsv4::parameter_store<config, float>;
using tokens = std::vector<std::int32_t>;

inline tokens prompt_tokens(std::string_view text) {
  tokens all{config.bos_token_id};
  all.insert(all.end(), text.begin(), text.end());
  return all;
}
inline tokens answer_tokens(std::string_view text) { return {text.begin(), text.end()}; }
inline std::string text_of(std::span<const std::int32_t> ids) { return {ids.begin(), ids.end()}; }

}  // namespace distill
