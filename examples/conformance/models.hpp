// SPDX-License-Identifier: Apache-2.0
/// The models of the suite: configurations, weights, tokens, and ways to run them.
#pragma once

#include "model_names.hpp"
#include "workbench.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/model/transformer.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

/// No two sizes that could be taken for one another are equal, and no constant is one that code has as its
/// default. Selection is active from the twelfth token on, the window ends after 7 tokens, the limit of
/// SwiGLU bites, and YaRN's original context is 16.
inline constexpr dsv4::model_config mixed_model = [] {
  using enum dsv4::attention_kind;
  dsv4::model_config c = dsv4::v4_flash;
  c.vocab_size = 53;
  c.hidden_size = 36;
  c.layers = dsv4::schedule({sliding, csa, hca, csa});
  c.attention = {.num_attention_heads = 6,
                 .head_dim = 20,
                 .qk_rope_head_dim = 8,
                 .q_lora_rank = 14,
                 .o_groups = 3,
                 .o_lora_rank = 11,
                 .sliding_window = 7,
                 .csa_compress_ratio = 4,
                 .hca_compress_ratio = 10,
                 .index_n_heads = 5,
                 .index_head_dim = 16,
                 .index_topk = 2,
                 .rope = {.rope_theta = 5000,
                          .compress_rope_theta = 90000,
                          .yarn_factor = 8,
                          .beta_fast = 32,
                          .beta_slow = 1,
                          .original_max_position_embeddings = 16}};
  c.moe = {.n_routed_experts = 9,
           .n_shared_experts = 1,
           .num_experts_per_tok = 2,
           .moe_intermediate_size = 18,
           .num_hash_layers = 1,
           .routed_scaling_factor = 2.25,
           .swiglu_limit = 0.75};
  c.max_position_embeddings = 1024;
  return c;
}();

/// V4-Pro's order of layers, and everything in the formats of the released checkpoints.
inline constexpr dsv4::model_config released_model = [] {
  using enum dsv4::attention_kind;
  dsv4::model_config c = mixed_model;
  c.layers = dsv4::schedule({hca, csa});
  c.attention.head_dim = 84;  // 76 channels in two groups of the KV format
  c.attention.index_head_dim = 32;
  c.attention.num_attention_heads = 3;
  c.num_nextn_predict_layers = 0;
  return c;
}();

/// The smallest: every gradient of it is in the suite.
inline constexpr dsv4::model_config trained_model = [] {
  using enum dsv4::attention_kind;
  dsv4::model_config c = mixed_model;
  c.vocab_size = 29;
  c.hidden_size = 22;
  c.layers = dsv4::schedule({sliding, csa, hca});
  c.attention.num_attention_heads = 3;
  c.attention.head_dim = 14;
  c.attention.qk_rope_head_dim = 6;
  c.attention.q_lora_rank = 9;
  c.attention.o_lora_rank = 5;
  c.attention.sliding_window = 5;
  c.attention.hca_compress_ratio = 7;
  c.attention.index_n_heads = 2;
  c.attention.index_head_dim = 8;
  c.moe.n_routed_experts = 5;
  c.moe.moe_intermediate_size = 10;
  c.hyper_connection.hc_mult = 2;
  return c;
}();

/// Tokens of a text: token i is (splitmix64(seed + i) >> 33) mod vocabulary.
inline std::vector<std::int32_t> draw_tokens(std::uint64_t seed, std::int64_t count, int vocabulary) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>((dsv4::detail::splitmix64(seed + std::uint64_t(i)) >> 33) %
                                               std::uint64_t(vocabulary)));
  return tokens;
}

/// Weights by the rule of initialise_by_name. Hash tables are permuted: their rows are not in the order of
/// the experts.
template <dsv4::model_config C, class T>
void initialise_with_table(dsv4::parameter_store<C, T>& store) {
  dsv4::initialise_by_name(store);
  dsv4::for_each_parameter<C>(store.views(), [](const auto&, auto& v) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*v.data)>, std::int32_t>)
      for (std::int64_t i = 0; i < v.size(); ++i)
        v.data[i] = static_cast<std::int32_t>((i / v.extent[1] * 4 + i % v.extent[1] * 2 + 3) %
                                              C.moe.n_routed_experts);
  });
}
/// The same, stored as `Q` says.
template <dsv4::model_config C, class T, dsv4::numerics_config Q, class P>
void suite_weights(const P& p, dsv4::parameter_store<C, T, Q>& store) {
  dsv4::parameter_store<C, T> wide;
  initialise_with_table<C>(wide);
  dsv4::quantise_parameters(p, wide, store);
}

/// Everything that a model computes for `ids` in one call, and then its drafts of the tokens after the next.
template <dsv4::model_config C, class T, dsv4::numerics_config Q, class P>
void record_model(const P& p, recorder& to, dsv4::parameter_store<C, T, Q>& weights,
                  std::vector<std::int32_t> ids) {
  using model = dsv4::transformer<C, T, Q>;
  const auto length = static_cast<std::int64_t>(ids.size());
  constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size, vocabulary = C.vocab_size;
  std::string prefix;
  to.name_of = [&](const node& call, const std::string& role) {
    return model_tensor_name(call, role, prefix);
  };
  dsv4::for_each_parameter<C>(weights.views(),
                              [&](const dsv4::parameter_info& info, auto& v) { to.know(v, info.name); });
  dsv4::rope_config plain = C.attention.rope;
  plain.yarn_factor = 1;
  record_table(to, "tables.window", C.attention.qk_rope_head_dim, plain.rope_theta, plain);
  record_table(to, "tables.compressed", C.attention.qk_rope_head_dim, plain.compress_rope_theta,
               C.attention.rope);
  const auto give_tokens = [&](const std::string& name, std::int64_t first) {
    const dsv4::vector_view<const std::int32_t> view(ids.data() + first, length - first);
    tensor t{dtype::i32, {length - first}, {}};
    t.values.assign(ids.begin() + first, ids.end());
    to.tensors.emplace(name, std::move(t));
    to.know(view, name);
    return view;
  };

  const recording<P> policy{p, &to};
  dsv4::workspace w;
  typename model::state state;
  dsv4::buffer<T> streams(length * n * width), logits(length * vocabulary);
  const auto tokens = give_tokens("tokens", 0);
  const typename model::segment whole{&state, length};
  model::forward(policy, w, weights.views(), {{&whole, 1}, tokens, dsv4::logit_rows::all},
                 {logits.as(length, vocabulary), streams.as(length, n, width)});
  if constexpr (C.num_nextn_predict_layers > 0) {
    prefix = "mtp.0.";
    const typename model::segment part{&state, length - 1};
    model::draft(policy, w, weights.views(),
                 {{&part, 1}, give_tokens("mtp.0.tokens", 1), dsv4::logit_rows::all},
                 streams.as(length, n, width).rows(0, length - 1),
                 {logits.as(length, vocabulary).rows(0, length - 1), {}});
  }
  for (auto& [name, t] : to.tensors) unflatten(name, t, name.starts_with("mtp.") ? length - 1 : length);
  for (auto& [name, e] : to.expected) e.axes = model_axes(name, to.tensors.at(name), e.axes);
}

}  // namespace conformance
