// SPDX-License-Identifier: Apache-2.0
/// The names of weights: released checkpoints' and Hugging Face's, in one table.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace dsv4::io {

namespace detail {
struct name_pair {
  std::string_view released, hugging_face;
};

/// Whole names.
inline constexpr std::array<name_pair, 6> global_names{{
    {"embed.weight", "model.embed_tokens.weight"},
    {"head.weight", "lm_head.weight"},
    {"norm.weight", "model.norm.weight"},
    {"hc_head_fn", "model.hc_head.hc_fn"},
    {"hc_head_base", "model.hc_head.hc_base"},
    {"hc_head_scale", "model.hc_head.hc_scale"},
}};

/// What follows "layers.<i>." and "model.layers.<i>.".
inline constexpr std::array<name_pair, 32> layer_names{{
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"hc_attn_fn", "attn_hc.fn"},
    {"hc_attn_base", "attn_hc.base"},
    {"hc_attn_scale", "attn_hc.scale"},
    {"hc_ffn_fn", "ffn_hc.fn"},
    {"hc_ffn_base", "ffn_hc.base"},
    {"hc_ffn_scale", "ffn_hc.scale"},
    {"attn.wq_a.weight", "self_attn.q_a_proj.weight"},
    {"attn.q_norm.weight", "self_attn.q_a_norm.weight"},
    {"attn.wq_b.weight", "self_attn.q_b_proj.weight"},
    {"attn.wkv.weight", "self_attn.kv_proj.weight"},
    {"attn.kv_norm.weight", "self_attn.kv_norm.weight"},
    {"attn.attn_sink", "self_attn.sinks"},
    {"attn.wo_a.weight", "self_attn.o_a_proj.weight"},
    {"attn.wo_b.weight", "self_attn.o_b_proj.weight"},
    {"attn.compressor.ape", "self_attn.compressor.position_bias"},
    {"attn.compressor.wkv.weight", "self_attn.compressor.kv_proj.weight"},
    {"attn.compressor.wgate.weight", "self_attn.compressor.gate_proj.weight"},
    {"attn.compressor.norm.weight", "self_attn.compressor.kv_norm.weight"},
    {"attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight"},
    {"attn.indexer.weights_proj.weight", "self_attn.compressor.indexer.scorer.weights_proj.weight"},
    {"attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"},
    {"attn.indexer.compressor.wkv.weight", "self_attn.compressor.indexer.kv_proj.weight"},
    {"attn.indexer.compressor.wgate.weight", "self_attn.compressor.indexer.gate_proj.weight"},
    {"attn.indexer.compressor.norm.weight", "self_attn.compressor.indexer.kv_norm.weight"},
    {"ffn.gate.weight", "mlp.gate.weight"},
    {"ffn.gate.bias", "mlp.gate.e_score_correction_bias"},
    {"ffn.gate.tid2eid", "mlp.gate.tid2eid"},
    {"ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight"},
    {"ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight"},
}};

}  // namespace detail

/// The Hugging Face name of a weight with the released name `released`, or nothing (MTP has none, and a
/// single expert has none: see fused_expert_name).
inline std::optional<std::string> hugging_face_name(std::string_view released) {
  for (const auto& pair : detail::global_names)
    if (pair.released == released) return std::string(pair.hugging_face);
  constexpr std::string_view layers = "layers.";
  if (!released.starts_with(layers)) return std::nullopt;
  const std::size_t dot = released.find('.', layers.size());
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view rest = released.substr(dot + 1);
  const std::string prefix = "model." + std::string(released.substr(0, dot + 1));
  for (const auto& pair : detail::layer_names)
    if (pair.released == rest) return prefix + std::string(pair.hugging_face);
  return std::nullopt;
}

/// Hugging Face stacks all experts of a layer: w1 above w3 in `gate_up_proj`, w2 in `down_proj`. `released`
/// is a name with '*' for the expert.
inline std::optional<std::string> fused_expert_name(std::string_view released) {
  const std::size_t at = released.find("ffn.experts.*.");
  if (at == std::string_view::npos || !released.starts_with("layers.")) return std::nullopt;
  const bool down = released.ends_with("w2.weight");
  return "model." + std::string(released.substr(0, at)) +
         (down ? "mlp.experts.down_proj" : "mlp.experts.gate_up_proj");
}

}  // namespace dsv4::io
