// SPDX-License-Identifier: Apache-2.0
/// A tiny model with every kind of layer, and a model's gradients as one array and as arguments of
/// grad_check.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/train/grad_check.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4::testing {

/// Every kind of layer, hash and learned routing, something to select, and a limit in SwiGLU that bites.
inline constexpr model_config tiny_model = [] {
  using enum attention_kind;
  model_config c = v4_nano;
  c.vocab_size = 11;
  c.hidden_size = 10;
  c.layers = schedule({sliding, csa, hca, csa});
  c.attention.num_attention_heads = 2;
  c.attention.head_dim = 6;
  c.attention.qk_rope_head_dim = 4;
  c.attention.q_lora_rank = 5;
  c.attention.o_groups = 2;
  c.attention.o_lora_rank = 4;
  c.attention.sliding_window = 3;
  c.attention.csa_compress_ratio = 2;
  c.attention.hca_compress_ratio = 4;
  c.attention.index_n_heads = 3;
  c.attention.index_head_dim = 4;
  c.attention.index_topk = 3;
  c.moe.n_routed_experts = 4;
  c.moe.moe_intermediate_size = 3;
  c.moe.swiglu_limit = 0.8;
  c.hyper_connection.hc_mult = 2;
  c.bos_token_id = 0;
  c.eos_token_id = 1;
  return c;
}();

/// All values of the scalar type, one behind the other.
template <model_config C, class T>
std::vector<T> flat(const parameter_store<C, T>& store) {
  std::vector<T> all;
  auto views = store.views();
  for_each_parameter<C>(views, [&]<class V>(const parameter_info&, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, T>) all.insert(all.end(), v.data, v.data + v.size());
  });
  return all;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// Largest difference relative to the largest value of b.
template <class A, class B>
double difference(const A& a, const B& b) {
  double worst = 0, largest = 1e-300;
  for (std::size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, std::abs(double(b[i])));
    const double d = std::abs(double(a[i]) - double(b[i]));
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return a.size() == b.size() ? worst / largest : INFINITY;
}

inline bool is_indexer(const std::string& name) { return name.find("indexer") != std::string::npos; }

/// Weights with their gradients, for grad_check: the indexers' parameters, or all others. Routers' biases
/// have no gradient.
template <model_config C>
std::vector<grad_check_argument> differentiated(parameter_store<C, double>& weights,
                                                parameter_store<C, double>& gradients, bool indexers) {
  std::vector<double*> found;
  for_each_parameter<C>(gradients.views(), [&]<class V>(const parameter_info&, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, double>) found.push_back(v.data);
  });
  std::vector<grad_check_argument> arguments;
  std::size_t i = 0;
  for_each_parameter<C>(weights.views(), [&]<class V>(const parameter_info& info, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, double>) {
      double* const gradient = found[i++];
      const auto count = static_cast<std::size_t>(v.size());
      if (is_indexer(info.name) == indexers && !info.name.ends_with("gate.bias"))
        arguments.push_back({info.name, {v.data, count}, {gradient, count}});
    }
  });
  return arguments;
}

}  // namespace dsv4::testing
