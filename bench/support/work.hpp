// SPDX-License-Identifier: Apache-2.0
/// What there is to compute, for whichever policy: the model's matrices, the keys that queries see, the
/// operations of blocks.
#pragma once

#include <dsv4/config/model_config.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4::bench {

/// A matrix of the model, out x in.
struct matrix_shape {
  const char* name;
  std::int64_t (*out)(const model_config&);
  std::int64_t (*in)(const model_config&);
  bool narrow = true;  ///< stored in FP8, where the format is the released one
};
inline std::int64_t heads_width(const model_config& c) {
  return std::int64_t{c.attention.num_attention_heads} * c.attention.head_dim;
}
inline std::int64_t hidden_width(const model_config& c) { return c.hidden_size; }
inline std::int64_t expert_width(const model_config& c) { return c.moe.moe_intermediate_size; }
inline constexpr matrix_shape matrix_shapes[] = {
    {"q_a", [](const model_config& c) -> std::int64_t { return c.attention.q_lora_rank; }, hidden_width},
    {"q_b", heads_width, [](const model_config& c) -> std::int64_t { return c.attention.q_lora_rank; }},
    {"kv", [](const model_config& c) -> std::int64_t { return c.attention.head_dim; }, hidden_width},
    {"o_b", hidden_width,
     [](const model_config& c) { return std::int64_t{c.attention.o_groups} * c.attention.o_lora_rank; }},
    {"shared_w1", expert_width, hidden_width},
    {"shared_w2", hidden_width, expert_width},
    {"mixer", [](const model_config& c) -> std::int64_t { return c.hyper_connection.mixes(); },
     [](const model_config& c) { return std::int64_t{c.hyper_connection.hc_mult} * c.hidden_size; }, false},
    {"head", [](const model_config& c) -> std::int64_t { return c.vocab_size; }, hidden_width, false},
};
/// Of no model: what is as high as wide.
inline constexpr matrix_shape square_shape{"square", hidden_width, hidden_width};

/// Rows of every expert, spread evenly, as offsets(0) ... offsets(experts). Of few pairs, experts from
/// `first` on have a row each.
template <class Offsets>
void spread_evenly(const Offsets& offsets, std::int64_t experts, std::int64_t pairs, std::int64_t first = 0) {
  const std::int64_t used = std::min(experts, pairs), begin = first % (experts - used + 1);
  for (std::int64_t e = 0; e <= experts; ++e)
    offsets(e) = std::clamp<std::int64_t>(e - begin, 0, used) * pairs / used;
}

/// What the query at `position` of a layer of that kind sees: window keys, and compressed entries of which
/// CSA takes some where there are more.
struct seen {
  seen(const attention_config& a, attention_kind kind, std::int64_t position)
      : window(std::min<std::int64_t>(position + 1, a.sliding_window)),
        visible(kind == attention_kind::sliding ? 0 : (position + 1) / a.compress_ratio(kind)),
        taken(kind == attention_kind::csa ? std::min<std::int64_t>(visible, a.index_topk) : visible) {}
  std::int64_t window, visible, taken;
  std::int64_t keys() const { return window + taken; }
  /// The j-th of the entries that are taken, evenly spaced; -1 beyond them.
  std::int32_t entry(std::int64_t j) const {
    return static_cast<std::int32_t>(j < taken ? j * visible / taken : -1);
  }
};

/// Keys of the queries [first, first + rows) together.
inline double keys_of(const attention_config& a, attention_kind kind, std::int64_t first, std::int64_t rows) {
  double sum = 0;
  for (std::int64_t t = first; t < first + rows; ++t) sum += double(seen(a, kind, t).keys());
  return sum;
}

/// Weights that every token of the attention sublayer is multiplied by.
inline double attention_weights(const model_config& c, attention_kind kind) {
  const attention_config& a = c.attention;
  const double d = c.hidden_size, heads = double(heads_width(c));
  double weights = d * a.q_lora_rank + a.q_lora_rank * heads + d * a.head_dim + heads * a.o_lora_rank +
                   double(a.o_groups) * a.o_lora_rank * d;
  if (kind == attention_kind::hca) weights += 2 * d * a.head_dim;
  if (kind == attention_kind::csa)
    weights += 4 * d * (a.head_dim + a.index_head_dim) + d * a.index_n_heads +
               double(a.q_lora_rank) * a.index_n_heads * a.index_head_dim;
  return weights;
}
/// Multiply-adds, twice, of the tokens [first, first + rows): the products with weights, the keys of each
/// head, and the indexer's where it has something to select.
inline double attention_flops(const model_config& c, attention_kind kind, std::int64_t first,
                              std::int64_t rows) {
  const attention_config& a = c.attention;
  double flops = 2 * attention_weights(c, kind) * double(rows);
  for (std::int64_t t = first; t < first + rows; ++t) {
    const seen s(a, kind, t);
    flops += 4 * double(s.keys()) * double(heads_width(c));
    if (s.taken < s.visible) flops += 2 * double(s.visible) * a.index_n_heads * a.index_head_dim;
  }
  return flops;
}

/// Multiply-adds, twice, of the mixture of experts for `rows` tokens.
inline double moe_flops(const model_config& c, std::int64_t rows) {
  const moe_config& m = c.moe;
  const double each = 3.0 * c.hidden_size * m.moe_intermediate_size;
  return 2.0 * double(rows) *
         ((m.num_experts_per_tok + m.n_shared_experts) * each + double(m.n_routed_experts) * c.hidden_size);
}
/// Experts that `rows` tokens read, on average, when each chooses at random: E (1 - (1 - k/E)^rows).
inline double experts_read(const moe_config& m, std::int64_t rows) {
  return m.n_routed_experts *
         (1 - std::pow(1 - double(m.num_experts_per_tok) / m.n_routed_experts, double(rows)));
}

}  // namespace dsv4::bench
