// SPDX-License-Identifier: Apache-2.0
/// The shape of a model from a config.json, at run time: costs need no compiled model.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/core/error.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <string>

namespace cost_program {

/// Only keys that costs depend on are read. Throws dsv4::format_error for one that is missing or out of
/// range.
inline dsv4::model_config read_config(const std::string& file) {
  using dsv4::attention_kind;
  std::ifstream in(file);
  if (!in) throw dsv4::io_error(file, "open", "no such file");
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(in);
  } catch (const nlohmann::json::exception&) {
    throw dsv4::format_error(file, "config", "JSON", "text that does not parse");
  }
  const auto number = [&](const char* key, int least = 1) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_number_integer() || found->get<long long>() < least ||
        found->get<long long>() > 1'000'000'000)
      throw dsv4::format_error(file, key, "a whole number from " + std::to_string(least),
                               found == json.end() ? "none" : found->dump());
    return found->get<int>();
  };
  dsv4::model_config c = dsv4::v4_flash;
  c.vocab_size = number("vocab_size");
  c.hidden_size = number("hidden_size");
  c.num_nextn_predict_layers = number("num_nextn_predict_layers", 0);
  c.hyper_connection.hc_mult = number("hc_mult");
  auto& a = c.attention;
  a.num_attention_heads = number("num_attention_heads");
  a.head_dim = number("head_dim");
  a.qk_rope_head_dim = number("qk_rope_head_dim", 0);
  a.q_lora_rank = number("q_lora_rank");
  a.o_groups = number("o_groups");
  a.o_lora_rank = number("o_lora_rank");
  a.sliding_window = number("sliding_window");
  a.index_n_heads = number("index_n_heads");
  a.index_head_dim = number("index_head_dim");
  a.index_topk = number("index_topk");
  auto& e = c.moe;
  e.n_routed_experts = number("n_routed_experts");
  e.n_shared_experts = number("n_shared_experts", 0);
  e.num_experts_per_tok = number("num_experts_per_tok");
  e.moe_intermediate_size = number("moe_intermediate_size");
  e.num_hash_layers = number("num_hash_layers", 0);

  // Ratio 0 is a sliding layer. `layer_types` tells CSA from HCA, else the smaller of two ratios is CSA's.
  const int layers = number("num_hidden_layers");
  const auto ratios = json.find("compress_ratios"), types = json.find("layer_types");
  if (ratios == json.end() || !ratios->is_array() || static_cast<int>(ratios->size()) < layers ||
      layers > dsv4::layer_schedule::capacity)
    throw dsv4::format_error(file, "compress_ratios", "a ratio for each of at most 128 layers", "another");
  int smallest = 0, largest = 0;
  for (int i = 0; i < layers; ++i) {
    const auto& entry = (*ratios)[static_cast<std::size_t>(i)];
    if (!entry.is_number_unsigned() || entry.get<unsigned long long>() > 1'000'000)
      throw dsv4::format_error(file, "compress_ratios", "whole numbers from 0", entry.dump());
    const int ratio = entry.get<int>();
    if (ratio > 0 && (smallest == 0 || ratio < smallest)) smallest = ratio;
    largest = std::max(largest, ratio);
  }
  c.layers = {};
  for (int i = 0; i < layers; ++i) {
    const int ratio = (*ratios)[static_cast<std::size_t>(i)].get<int>();
    const bool typed =
        types != json.end() && types->is_array() && types->size() > static_cast<std::size_t>(i);
    const bool csa = typed ? (*types)[static_cast<std::size_t>(i)] == "compressed_sparse_attention"
                           : ratio == smallest && (smallest < largest || ratio <= 16);
    c.layers = c.layers.then(ratio == 0 ? attention_kind::sliding
                             : csa      ? attention_kind::csa
                                        : attention_kind::hca);
    if (ratio > 0) (csa ? a.csa_compress_ratio : a.hca_compress_ratio) = ratio;
  }
  return c;
}

}  // namespace cost_program
