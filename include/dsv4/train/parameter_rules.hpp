// SPDX-License-Identifier: Apache-2.0
/// Which rule trains which parameter, and into which logical matrices a stored one is split.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/core/error.hpp>
#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv4 {

enum class update_rule {
  muon,         ///< matrices that map activations
  adamw,        ///< embedding, head, vectors and tables
  router_bias,  ///< the sign rule of router_balance.hpp; no gradient
  frozen,       ///< hash tables
};

constexpr std::string_view update_rule_name(update_rule rule) {
  switch (rule) {
    case update_rule::muon:
      return "Muon";
    case update_rule::adamw:
      return "AdamW";
    case update_rule::router_bias:
      return "router bias";
    case update_rule::frozen:
      return "frozen";
  }
  return "?";
}

struct parameter_rule {
  update_rule rule;
  bool decay;                      ///< whether weight decay applies
  std::vector<std::int64_t> rows;  ///< Muon: rows of each logical matrix, top to bottom of the stacked whole
};

namespace detail {
/// "3." of "layers.3.attn.wq_a.weight" and the like is cut off: what kind of parameter `name` is.
inline std::string_view parameter_kind(std::string_view name) {
  for (const std::string_view prefix : {"layers.", "mtp."})
    if (name.starts_with(prefix)) {
      const std::size_t dot = name.find('.', prefix.size());
      if (dot != std::string_view::npos) return name.substr(dot + 1);
    }
  return name;
}
}  // namespace detail

/// The rule for a parameter of a model of configuration `c`, from its released name and its shape. Throws
/// contract_error for a parameter that the table does not know: nothing is trained by accident.
///
/// AdamW takes the embedding, the head, norms, mHC biases and scales (report, section 2.4), and by our
/// reading attention sinks and the compressors' position biases. Muon takes all other matrices, each logical
/// one by itself: experts and their w1, w2, w3; groups of wo_a; the halves of an overlapping compressor; the
/// pre, post and combination rows of an mHC projection. Vectors and position biases do not decay (the report
/// is silent).
inline parameter_rule rule_of(const model_config& c, const parameter_info& info) {
  const std::string_view kind = detail::parameter_kind(info.name);
  const auto is = [&](auto... names) { return ((kind == names) || ...); };
  const auto& shape = info.shape;
  const auto equal_parts = [](std::int64_t count, std::int64_t rows) {
    return parameter_rule{update_rule::muon, true,
                          std::vector<std::int64_t>(static_cast<std::size_t>(count), rows)};
  };

  if (is("embed.weight", "head.weight")) return {update_rule::adamw, true, {}};
  if (is("norm.weight", "enorm.weight", "hnorm.weight", "attn_norm.weight", "ffn_norm.weight",
         "attn.q_norm.weight", "attn.kv_norm.weight", "attn.attn_sink", "attn.compressor.norm.weight",
         "attn.compressor.ape", "attn.indexer.compressor.norm.weight", "attn.indexer.compressor.ape",
         "hc_attn_base", "hc_attn_scale", "hc_ffn_base", "hc_ffn_scale", "hc_head_base", "hc_head_scale"))
    return {update_rule::adamw, false, {}};
  if (is("ffn.gate.bias")) return {update_rule::router_bias, false, {}};
  if (is("ffn.gate.tid2eid")) return {update_rule::frozen, false, {}};

  if (is("attn.wq_a.weight", "attn.wq_b.weight", "attn.wkv.weight", "attn.wo_b.weight",
         "attn.indexer.wq_b.weight", "attn.indexer.weights_proj.weight", "ffn.gate.weight",
         "ffn.shared_experts.w1.weight", "ffn.shared_experts.w2.weight", "ffn.shared_experts.w3.weight",
         "e_proj.weight", "h_proj.weight", "hc_head_fn"))
    return equal_parts(1, shape.at(0));
  if (is("attn.wo_a.weight", "ffn.experts.*.w1.weight", "ffn.experts.*.w2.weight", "ffn.experts.*.w3.weight"))
    return equal_parts(shape.at(0), shape.at(1));
  if (is("attn.compressor.wkv.weight", "attn.compressor.wgate.weight", "attn.indexer.compressor.wkv.weight",
         "attn.indexer.compressor.wgate.weight")) {
    // The rows of the previous block's part come first, then the current block's; HCA has the latter only.
    const std::int64_t dim =
        kind.starts_with("attn.indexer.") ? c.attention.index_head_dim : c.attention.head_dim;
    return equal_parts(shape.at(0) / dim, dim);
  }
  if (is("hc_attn_fn", "hc_ffn_fn")) {
    const std::int64_t n = c.hyper_connection.hc_mult;
    return {update_rule::muon, true, {n, n, n * n}};
  }
  throw contract_error("rule_of", "parameter", "a parameter that parameter_rules.hpp has a rule for",
                       info.name);
}

/// One line for all parameters of the same kind, shape and rule.
struct parameter_rule_row {
  std::string name;  ///< of the layers' parameters with '*' for the layer's number
  std::vector<std::int64_t> shape;
  parameter_rule rule;
  std::int64_t count;  ///< parameters that this row stands for
};

/// The table for a configuration, in the order of for_each_parameter. Needs no memory for the weights.
template <model_config C>
std::vector<parameter_rule_row> parameter_rules() {
  std::vector<parameter_rule_row> rows;
  model_parameters<float> views;
  for_each_parameter<C>(views, [&](const parameter_info& info, auto&) {
    const std::string_view name = info.name, kind = detail::parameter_kind(name);
    std::string general(kind);
    if (kind.size() != name.size()) general = std::string(name.substr(0, name.find('.'))) + ".*." + general;
    for (auto& row : rows)
      if (row.name == general && row.shape == info.shape) {
        ++row.count;
        return;
      }
    rows.push_back({std::move(general), info.shape, rule_of(C, info), 1});
  });
  return rows;
}

/// The table as text, one row a line: name, shape, how many, rule, logical matrices.
template <model_config C>
std::string parameter_rule_text() {
  const auto join = [](const std::vector<std::int64_t>& numbers, std::string_view between) {
    std::string text;
    for (std::int64_t n : numbers) text += (text.empty() ? "" : std::string(between)) + std::to_string(n);
    return text;
  };
  const auto padded = [](std::string text, std::size_t width) {
    text.resize(std::max(width, text.size() + 1), ' ');
    return text;
  };
  std::string text = padded("parameter", 48) + padded("shape", 20) + padded("count", 7) + "rule\n";
  for (const auto& row : parameter_rules<C>()) {
    text += padded(row.name, 48) + padded("[" + join(row.shape, ", ") + "]", 20) +
            padded(std::to_string(row.count), 7) + std::string(update_rule_name(row.rule.rule));
    if (row.rule.rule == update_rule::adamw) text += row.rule.decay ? ", with decay" : ", without decay";
    if (row.rule.rows.size() > 1) {
      bool equal = true;
      for (std::int64_t r : row.rule.rows) equal = equal && r == row.rule.rows[0];
      text += equal ? ", " + std::to_string(row.rule.rows.size()) + " matrices of " +
                          std::to_string(row.rule.rows[0]) + " rows"
                    : ", matrices of " + join(row.rule.rows, ", ") + " rows";
    }
    text += "\n";
  }
  return text;
}

}  // namespace dsv4
