// SPDX-License-Identifier: Apache-2.0
/// What a training step holds in memory: weights, gradients, optimiser state, and what the backward pass
/// needs of the forward pass.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/config/recompute.hpp>
#include <dsv4/cost/weights.hpp>

#include <cstdint>

namespace dsv4::cost {

struct training_setup {
  recompute_policy recompute = {};
  bool mtp = false;           ///< the multi-token-prediction block runs
  bool indexer_loss = false;  ///< the lightning indexer is trained
  bool dense = false;         ///< every visible entry is attended: the time before sparse attention
  std::int64_t scalar_bytes = 4;
  std::int64_t momentum_bytes = 4;  ///< of an element of Muon's momentum; 2: bf16
};

/// Bytes of Muon's momenta and AdamW's two moments.
constexpr std::int64_t optimizer_bytes(const model_config& c, const training_setup& s = {}) {
  std::int64_t bytes = 0;
  for_each_weight(c, [&](const weight& w) {
    if (w.stored == weight_class::table) return;
    bytes += w.elements() * (w.trained_by_muon ? s.momentum_bytes : 2 * s.scalar_bytes);
  });
  // Router biases are among the scalars above, but no optimiser's.
  const std::int64_t routers = c.num_hidden_layers() - c.moe.num_hash_layers + c.num_nextn_predict_layers;
  return bytes - routers * c.moe.n_routed_experts * 2 * s.scalar_bytes;
}

/// Bytes that attention and MoE of one layer keep of a document of `tokens` tokens; 0 where they are computed
/// again.
constexpr std::int64_t layer_activation_bytes(const model_config& c, attention_kind kind, std::int64_t tokens,
                                              const training_setup& s = {}) {
  const attention_config& a = c.attention;
  const moe_config& e = c.moe;
  const bool csa = kind == attention_kind::csa, indexed = s.indexer_loss && csa;
  std::int64_t bytes = indexed ? tokens * s.scalar_bytes : 0;  // the indexer's losses are kept in any case
  if (s.recompute.sublayers) return bytes;
  const std::int64_t heads_dim = std::int64_t{a.num_attention_heads} * a.head_dim;
  const std::int64_t entries = kind == attention_kind::sliding ? 0 : tokens / a.compress_ratio(kind);
  // Queries before and after attention, keys, the narrow sides of both projections, the softmax' sums.
  std::int64_t each = a.q_lora_rank + 2 * heads_dim + a.head_dim + a.num_attention_heads +
                      std::int64_t{a.o_groups} * a.o_lora_rank;
  std::int64_t once = 0, indices = e.num_experts_per_tok;
  if (kind != attention_kind::sliding) {
    each += 2 * std::int64_t{csa ? 2 : 1} * a.head_dim;  // values and gates to be pooled
    once += entries * a.head_dim;
  }
  if (csa && !s.dense && entries > a.index_topk) indices += a.index_topk;
  if (indexed) {
    each += std::int64_t{a.index_n_heads} * a.index_head_dim + a.index_n_heads + 4 * a.index_head_dim;
    once += entries * a.index_head_dim;
  }
  // Router logits and weights; both halves of SwiGLU's input, of each expert chosen and the shared one.
  each += e.n_routed_experts + e.num_experts_per_tok +
          2 * std::int64_t{e.num_experts_per_tok + 1} * e.moe_intermediate_size;
  return bytes + (tokens * each + once) * s.scalar_bytes + tokens * indices * 4;
}

/// Bytes that a step keeps of one document of `tokens` tokens; documents add up. Scratch memory is not
/// counted.
constexpr std::int64_t activation_bytes(const model_config& c, std::int64_t tokens,
                                        const training_setup& s = {}) {
  const std::int64_t n = c.hyper_connection.hc_mult, d = c.hidden_size;
  std::int64_t bytes = 0;
  const auto stack = [&](std::int64_t sublayers) {
    const std::int64_t kept = (sublayers + s.recompute.streams_every - 1) / s.recompute.streams_every;
    // Streams, those after the last layer, each sublayer's output and mixing logits, the head's, its input.
    bytes +=
        tokens * s.scalar_bytes * ((kept + 1) * n * d + sublayers * (d + c.hyper_connection.mixes()) + n + d);
  };
  for (int i = 0; i < c.num_hidden_layers(); ++i) bytes += layer_activation_bytes(c, c.kind(i), tokens, s);
  stack(2 * c.num_hidden_layers());
  if (s.mtp && c.num_nextn_predict_layers > 0) {
    bytes += layer_activation_bytes(c, attention_kind::sliding, tokens, s);
    stack(2);
  }
  return bytes;
}

struct training_memory {
  std::int64_t weights, gradients, optimizer, activations;
  constexpr std::int64_t total() const { return weights + gradients + optimizer + activations; }
};

/// A step over `documents` documents of `tokens` tokens each.
constexpr training_memory training_bytes(const model_config& c, std::int64_t tokens,
                                         std::int64_t documents = 1, const training_setup& s = {}) {
  const std::int64_t weights = weight_bytes(c, numerics::float32, s.scalar_bytes).total();
  return {weights, weights, optimizer_bytes(c, s), documents * activation_bytes(c, tokens, s)};
}

}  // namespace dsv4::cost
