// SPDX-License-Identifier: Apache-2.0
/// The configurations of the recorded models in tests/data, and their tensors.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/model/transformer.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace dsv4::testing {

inline constexpr attention_kind S = attention_kind::sliding, C = attention_kind::csa, H = attention_kind::hca;

/// What all recorded models share; see tests/README.md.
constexpr model_config golden(layer_schedule layers, int hash_layers) {
  model_config c = v4_flash;
  c.vocab_size = 96;
  c.hidden_size = 64;
  c.layers = layers;
  c.attention.num_attention_heads = 4;
  c.attention.head_dim = 32;
  c.attention.qk_rope_head_dim = 8;
  c.attention.q_lora_rank = 24;
  c.attention.o_groups = 2;
  c.attention.o_lora_rank = 16;
  c.attention.sliding_window = 8;
  c.attention.hca_compress_ratio = 16;
  c.attention.index_n_heads = 16;
  c.attention.index_head_dim = 16;
  c.attention.index_topk = 4;
  c.attention.rope.yarn_factor = 1;
  c.moe.n_routed_experts = 8;
  c.moe.num_experts_per_tok = 2;
  c.moe.moe_intermediate_size = 32;
  c.moe.num_hash_layers = hash_layers;
  c.max_position_embeddings = 1024;
  c.num_nextn_predict_layers = 0;
  return c;
}

/// Smaller than the recorded ones, a layer of each kind: for tests that train.
inline constexpr model_config trained = [] {
  model_config c = golden(schedule({S, C, H}), 1);
  c.hidden_size = 32;
  c.attention.num_attention_heads = 2;
  c.attention.head_dim = 16;
  c.attention.index_n_heads = 2;
  c.moe.n_routed_experts = 4;
  return c;
}();

inline constexpr model_config mixed = golden(schedule({S, S, C, H, C, H}), 2);
inline constexpr model_config csa_only = [] {
  model_config c = golden(schedule({C, C}), 0);
  c.attention.index_topk = 3;
  return c;
}();
inline constexpr model_config hca_first = [] {
  model_config c = golden(schedule({H, H, C, H}), 3);
  c.hyper_connection.hc_mult = 2;
  return c;
}();
inline constexpr model_config yarn = [] {
  model_config c = golden(schedule({S, C, H}), 0);
  c.attention.rope.yarn_factor = 16;
  c.attention.rope.original_max_position_embeddings = 64;
  return c;
}();
inline constexpr model_config clamp = [] {
  model_config c = golden(schedule({S, H}), 0);
  c.moe.swiglu_limit = 0.05;
  return c;
}();
inline constexpr model_config short_text = golden(schedule({S, C, H}), 1);

/// An F32, F64 or I32 tensor of a file, converted.
template <class T>
std::vector<T> tensor(const io::safetensors_file& file, const std::string& name) {
  const io::tensor_info& t = file.at(name);
  const auto bytes = file.bytes(t);
  std::vector<T> out(bytes.size() * 8 / static_cast<std::size_t>(io::dtype_bits(t.dtype)));
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (t.dtype == io::dtype::f64)
      out[i] = static_cast<T>(io::detail::read_as<double>(bytes.data() + 8 * i));
    else if (t.dtype == io::dtype::i32)
      out[i] = static_cast<T>(io::detail::read_as<std::int32_t>(bytes.data() + 4 * i));
    else
      out[i] = static_cast<T>(io::detail::read_as<float>(bytes.data() + 4 * i));
  }
  return out;
}

/// The largest |a - b|; infinity when one of them is not finite or the lengths differ.
template <class A, class B>
double largest_difference(const A& a, const B& b) {
  if (static_cast<std::size_t>(a.size()) != static_cast<std::size_t>(b.size())) return INFINITY;
  double worst = 0;
  auto it = std::begin(b);
  for (auto x : a) {
    const double d = std::abs(double(x) - double(*it++));
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

}  // namespace dsv4::testing
