// SPDX-License-Identifier: Apache-2.0
/// Parameter counts of a configuration, from the tensor shapes of the released checkpoints.
#pragma once

#include <dsv4/config/model_config.hpp>

#include <cstdint>

namespace dsv4 {

/// Logical elements: block scales and hash tables are not counted.
struct parameter_count {
  std::int64_t main;    ///< embedding, layers, head
  std::int64_t mtp;     ///< the multi-token-prediction block
  std::int64_t active;  ///< used by one token, without the embedding row and MTP
  constexpr std::int64_t with_mtp() const { return main + mtp; }
};

namespace detail {
constexpr std::int64_t count_compressor(std::int64_t hidden, std::int64_t dim, std::int64_t ratio,
                                        bool overlap) {
  const std::int64_t width = dim * (overlap ? 2 : 1);
  return 2 * hidden * width + ratio * width + dim;
}

/// One layer with `experts` routed experts counted.
constexpr std::int64_t count_layer(const model_config& c, attention_kind kind, bool hashed,
                                   std::int64_t experts) {
  const attention_config& a = c.attention;
  const std::int64_t d = c.hidden_size, n = c.hyper_connection.hc_mult, heads = a.num_attention_heads,
                     dim = a.head_dim;
  std::int64_t sum = d * a.q_lora_rank + a.q_lora_rank * heads * dim + d * dim;       // q, kv
  sum += heads * dim * a.o_lora_rank + std::int64_t{a.o_groups} * a.o_lora_rank * d;  // output
  sum += a.q_lora_rank + dim + heads;                                                 // norms, sinks
  if (kind != attention_kind::sliding)
    sum += count_compressor(d, dim, a.compress_ratio(kind), kind == attention_kind::csa);
  if (kind == attention_kind::csa) {
    sum += std::int64_t{a.q_lora_rank} * a.index_n_heads * a.index_head_dim + d * a.index_n_heads;
    sum += count_compressor(d, a.index_head_dim, a.csa_compress_ratio, true);
  }
  sum += 2 * (c.hyper_connection.mixes() * (n * d + 1) + 3) + 2 * d;                        // mHC, norms
  sum += std::int64_t{c.moe.n_routed_experts} * d + (hashed ? 0 : c.moe.n_routed_experts);  // gate, bias
  return sum + (experts + c.moe.n_shared_experts) * 3 * d * c.moe.moe_intermediate_size;
}
}  // namespace detail

constexpr parameter_count count_parameters(const model_config& c) {
  const std::int64_t d = c.hidden_size, n = c.hyper_connection.hc_mult;
  const std::int64_t head_mixer = n * n * d + n + 1, vocabulary = std::int64_t{c.vocab_size} * d;
  parameter_count count{};
  for (int i = 0; i < c.num_hidden_layers(); ++i) {
    count.main += detail::count_layer(c, c.kind(i), c.hashed(i), c.moe.n_routed_experts);
    count.active += detail::count_layer(c, c.kind(i), c.hashed(i), c.moe.num_experts_per_tok);
  }
  count.main += 2 * vocabulary + head_mixer + d;
  count.active += vocabulary + head_mixer + d;
  if (c.num_nextn_predict_layers)
    count.mtp = detail::count_layer(c, attention_kind::sliding, false, c.moe.n_routed_experts) + 2 * d * d +
                3 * d + head_mixer;
  return count;
}

}  // namespace dsv4
