// SPDX-License-Identifier: Apache-2.0
/// A model's configuration against a Hugging Face config.json, and as one.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/config/validate.hpp>
#include <dsv4/core/error.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace dsv4::io {

inline constexpr std::string_view config_model_type = "deepseek_v4";
inline constexpr std::string_view config_supported = "deepseek_v4 (V4-Flash and V4-Pro, April 2026)";

namespace detail {

inline constexpr std::size_t config_max_bytes = std::size_t{1} << 24U;
inline constexpr int config_max_depth = 16;

/// Parses the text of a config.json: one object, no key twice, nesting bounded.
inline nlohmann::json parse_config(std::string_view file, std::string_view text) {
  using json = nlohmann::json;
  if (text.size() > config_max_bytes)
    throw format_error(file, "config", "at most " + std::to_string(config_max_bytes) + " bytes",
                       std::to_string(text.size()) + " bytes");
  // nlohmann takes NUL for the end of the input, which would hide whatever follows it.
  if (text.find('\0') != std::string_view::npos) throw format_error(file, "config", "JSON", "a NUL byte");
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > config_max_depth)
      throw format_error(file, "config", "at most " + std::to_string(config_max_depth) + " levels of nesting",
                         "more");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw format_error(file, "config", "each key once",
                         "a duplicate key " + in_quotes(value.get<std::string>()));
    return true;
  };
  json config;
  try {
    config = json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& failure) {
    throw format_error(file, "config", "JSON", printable(failure.what()));
  }
  if (!config.is_object()) throw format_error(file, "config", "a JSON object", config.type_name());
  return config;
}

inline nlohmann::json read_config(const std::filesystem::path& file) {
  const mapped_file mapped(file, file_access::read);
  const auto bytes = mapped.bytes();
  return parse_config(file.string(), {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

/// The model_type of a parsed config.json.
inline std::string model_type_in(std::string_view file, const nlohmann::json& config) {
  const auto found = config.find("model_type");
  if (found == config.end() || !found->is_string())
    throw format_error(file, "model_type", "a string; supported: " + std::string(config_supported),
                       found == config.end() ? "none" : found->type_name());
  return found->get<std::string>();
}

/// Calls f(key, value) for everything that a config.json spells in one way only. `value` is an int, a double,
/// a bool or a string.
template <class F>
void for_each_config_value(const model_config& c, const F& f) {
  const attention_config& a = c.attention;
  f("vocab_size", c.vocab_size);
  f("hidden_size", c.hidden_size);
  f("num_hidden_layers", c.num_hidden_layers());
  f("num_attention_heads", a.num_attention_heads);
  f("num_key_value_heads", 1);
  f("head_dim", a.head_dim);
  f("q_lora_rank", a.q_lora_rank);
  f("o_groups", a.o_groups);
  f("o_lora_rank", a.o_lora_rank);
  f("sliding_window", a.sliding_window);
  f("index_n_heads", a.index_n_heads);
  f("index_head_dim", a.index_head_dim);
  f("index_topk", a.index_topk);
  f("n_routed_experts", c.moe.n_routed_experts);
  f("n_shared_experts", c.moe.n_shared_experts);
  f("num_experts_per_tok", c.moe.num_experts_per_tok);
  f("moe_intermediate_size", c.moe.moe_intermediate_size);
  f("scoring_func", "sqrtsoftplus");
  f("topk_method", "noaux_tc");
  f("norm_topk_prob", true);
  f("routed_scaling_factor", c.moe.routed_scaling_factor);
  f("swiglu_limit", c.moe.swiglu_limit);
  f("hc_mult", c.hyper_connection.hc_mult);
  f("hc_sinkhorn_iters", c.hyper_connection.hc_sinkhorn_iters);
  f("hc_eps", c.hyper_connection.hc_eps);
  f("rms_norm_eps", c.rms_norm_eps);
  f("max_position_embeddings", c.max_position_embeddings);
  f("num_nextn_predict_layers", c.num_nextn_predict_layers);
  f("bos_token_id", c.bos_token_id);
  f("eos_token_id", c.eos_token_id);
  f("tie_word_embeddings", false);
  f("hidden_act", "silu");
  f("attention_bias", false);
}

/// The YaRN constants, as `rope_scaling` or `rope_parameters.compress` spells them.
template <class F>
void for_each_yarn_value(const rope_config& r, const F& f) {
  f("factor", r.yarn_factor);
  f("original_max_position_embeddings", r.original_max_position_embeddings);
  f("beta_fast", r.beta_fast);
  f("beta_slow", r.beta_slow);
}

/// Whether a list of compress ratios alone does not tell CSA layers from HCA layers.
inline bool ratios_are_ambiguous(const model_config& c) {
  return c.attention.csa_compress_ratio == c.attention.hca_compress_ratio &&
         c.layers.number_of(attention_kind::csa) > 0 && c.layers.number_of(attention_kind::hca) > 0;
}

inline constexpr const char* layer_type_name(attention_kind kind) {
  return kind == attention_kind::csa   ? "compressed_sparse_attention"
         : kind == attention_kind::hca ? "heavily_compressed_attention"
                                       : "sliding_attention";
}

/// Collects the differences between a configuration and a parsed config.json. Where a key has two spellings,
/// all that are there must agree with the model, and one must be there.
class config_comparison {
 public:
  using json = nlohmann::json;

  config_comparison(const model_config& c, const json& file) : c_(c), file_(file) {
    for_each_config_value(c, [&](const char* key, const auto& want) { compare(file, "", key, want); });
    compare_rotary_dims();
    compare_layers();
    compare_hash_layers();
    compare_rope();
  }

  const std::vector<std::string>& differences() const { return differences_; }

 private:
  /// The value of `key`, or null where it is absent or null.
  static const json* find(const json* object, const char* key) {
    if (!object || !object->is_object()) return nullptr;
    const auto at = object->find(key);
    return at == object->end() || at->is_null() ? nullptr : &*at;
  }

  static bool equal(const json& found, bool want) { return found.is_boolean() && found.get<bool>() == want; }
  static bool equal(const json& found, const char* want) {
    return found.is_string() && found.get_ref<const std::string&>() == want;
  }
  static bool equal(const json& found, int want) {  // no want is negative
    return found.is_number_unsigned() && found.get<std::uint64_t>() == static_cast<std::uint64_t>(want);
  }
  static bool equal(const json& found, double want) {
    return found.is_number() && found.get<double>() == want;
  }

  static std::string text(const json& value) { return printable(value.dump()); }
  void missing(const std::string& key, const std::string& want) {
    differences_.push_back(key + ": missing (this model has " + want + ")");
  }
  void differs(const std::string& key, const std::string& want, const std::string& found) {
    differences_.push_back(key + ": this model has " + want + ", the file has " + found);
  }

  template <class T>
  void compare_value(const std::string& key, const json& found, const T& want) {
    if (!equal(found, want)) differs(key, text(want), text(found));
  }
  template <class T>
  void compare(const json& object, const std::string& prefix, const char* key, const T& want) {
    if (const json* found = find(&object, key))
      compare_value(prefix + key, *found, want);
    else
      missing(prefix + key, text(want));
  }

  /// An array whose element i must be want(i), of `least` to `most` entries.
  template <class Want>
  void compare_list(const std::string& key, const json& found, int least, int most, const Want& want) {
    const std::string length = std::to_string(most) + " entries";
    if (!found.is_array()) return differs(key, length, text(found));
    const auto size = static_cast<int>(found.size());  // fits: the file is small
    if (size != least && size != most) return differs(key, length, std::to_string(size) + " entries");
    for (int i = 0; i < size; ++i)
      compare_value(key + "[" + std::to_string(i) + "]", found[static_cast<std::size_t>(i)], want(i));
  }

  void compare_rotary_dims() {
    const int dims = c_.attention.qk_rope_head_dim;
    const json* fraction = find(&file_, "partial_rotary_factor");
    if (!fraction || find(&file_, "qk_rope_head_dim")) compare(file_, "", "qk_rope_head_dim", dims);
    if (!fraction) return;
    // A fraction such as 1/3 is rounded in the file.
    if (!fraction->is_number() || !(std::abs(fraction->get<double>() * c_.attention.head_dim - dims) < 1e-6))
      differs("partial_rotary_factor", text(static_cast<double>(dims) / c_.attention.head_dim),
              text(*fraction));
  }

  void compare_layers() {
    const int layers = c_.num_hidden_layers();
    const json *ratios = find(&file_, "compress_ratios"), *types = find(&file_, "layer_types");
    if (ratios)
      compare_list("compress_ratios", *ratios, layers, layers + c_.num_nextn_predict_layers,
                   [&](int i) { return c_.attention.compress_ratio(c_.kind(i)); });
    if (types)
      compare_list("layer_types", *types, layers, layers, [&](int i) { return layer_type_name(c_.kind(i)); });
    if (!ratios && !types)
      missing("compress_ratios", std::to_string(layers + c_.num_nextn_predict_layers) + " entries");
    else if (!types && ratios_are_ambiguous(c_))
      missing("layer_types", std::to_string(layers) + " entries");

    // With compress_ratios there, compress_rates says nothing new, but must not say anything else.
    const json* rates = find(&file_, "compress_rates");
    if (!rates && (ratios || !types)) return;
    const json none = json::object();
    if (!rates) rates = &none;
    for (const attention_kind kind : {attention_kind::csa, attention_kind::hca})
      if (c_.layers.number_of(kind) > 0)
        compare(*rates, "compress_rates.", layer_type_name(kind), c_.attention.compress_ratio(kind));
  }

  void compare_hash_layers() {
    const json* types = find(&file_, "mlp_layer_types");
    if (!types || find(&file_, "num_hash_layers"))
      compare(file_, "", "num_hash_layers", c_.moe.num_hash_layers);
    if (types)
      compare_list("mlp_layer_types", *types, c_.num_hidden_layers(), c_.num_hidden_layers(),
                   [&](int i) { return c_.hashed(i) ? "hash_moe" : "moe"; });
  }

  void compare_yarn(const json& object, const std::string& prefix) {
    const json *type = find(&object, "type"), *rope_type = find(&object, "rope_type");
    if (type || !rope_type) compare(object, prefix, "type", "yarn");
    if (rope_type) compare(object, prefix, "rope_type", "yarn");
    for_each_yarn_value(c_.attention.rope,
                        [&](const char* key, const auto& want) { compare(object, prefix, key, want); });
    // Cosines and sines are not scaled.
    if (find(&object, "attention_factor")) compare(object, prefix, "attention_factor", 1.0);
  }

  void compare_rope() {
    const rope_config& r = c_.attention.rope;
    const json* nested = find(&file_, "rope_parameters");
    const json *main = find(nested, "main"), *compressed = find(nested, "compress");
    if (!find(main, "rope_theta") || find(&file_, "rope_theta"))
      compare(file_, "", "rope_theta", r.rope_theta);
    if (!find(compressed, "rope_theta") || find(&file_, "compress_rope_theta"))
      compare(file_, "", "compress_rope_theta", r.compress_rope_theta);
    if (main && find(main, "rope_theta")) compare(*main, "rope_parameters.main.", "rope_theta", r.rope_theta);
    if (compressed) {
      if (find(compressed, "rope_theta"))
        compare(*compressed, "rope_parameters.compress.", "rope_theta", r.compress_rope_theta);
      compare_yarn(*compressed, "rope_parameters.compress.");
    }
    if (const json* scaling = find(&file_, "rope_scaling"))
      compare_yarn(*scaling, "rope_scaling.");
    else if (!compressed)
      missing("rope_scaling", "an object");
  }

  const model_config& c_;
  const json& file_;
  std::vector<std::string> differences_;
};

inline void check_config(const model_config& c, const nlohmann::json& config, std::string_view file) {
  if (const std::string type = model_type_in(file, config); type != config_model_type)
    throw format_error(file, "model_type", config_supported, in_quotes(type));
  const config_comparison comparison(c, config);
  const auto& differences = comparison.differences();
  if (differences.empty()) return;
  std::string list =
      std::to_string(differences.size()) + (differences.size() == 1 ? " difference:" : " differences:");
  for (const auto& difference : differences) list += "\n  " + difference;
  throw format_error(file, "config", "the configuration of this model", list);
}

inline std::string config_to_json(const model_config& c) {
  nlohmann::ordered_json out;
  out["model_type"] = config_model_type;
  for_each_config_value(c, [&](const char* key, const auto& value) { out[key] = value; });
  out["qk_rope_head_dim"] = c.attention.qk_rope_head_dim;
  out["num_hash_layers"] = c.moe.num_hash_layers;
  for (int i = 0; i < c.num_hidden_layers() + c.num_nextn_predict_layers; ++i)
    out["compress_ratios"].push_back(c.attention.compress_ratio(c.kind(i)));
  if (ratios_are_ambiguous(c))
    for (int i = 0; i < c.num_hidden_layers(); ++i) out["layer_types"].push_back(layer_type_name(c.kind(i)));
  out["rope_theta"] = c.attention.rope.rope_theta;
  out["compress_rope_theta"] = c.attention.rope.compress_rope_theta;
  auto& scaling = out["rope_scaling"];
  scaling["type"] = "yarn";
  for_each_yarn_value(c.attention.rope, [&](const char* key, const auto& value) { scaling[key] = value; });
  return out.dump(2) + "\n";
}

}  // namespace detail

/// The `model_type` that a config.json names. Throws io_error, or format_error where there is none.
inline std::string model_type_of(const std::filesystem::path& config_json) {
  return detail::model_type_in(config_json.string(), detail::read_config(config_json));
}

/// Throws one format_error that lists every difference between `C` and `text`, a config.json that messages
/// call `name`. Nothing has a default: a missing key is a difference. Keys that no field of `C` depends on
/// are ignored.
template <model_config C>
void check_config(std::string_view text, std::string_view name) {
  static_assert(valid<C>());
  detail::check_config(C, detail::parse_config(name, text), name);
}

/// The same for a file. Throws io_error where it cannot be read.
template <model_config C>
void check_config(const std::filesystem::path& config_json) {
  static_assert(valid<C>());
  detail::check_config(C, detail::read_config(config_json), config_json.string());
}

/// `C` as a config.json that check_config<C> accepts, in the keys of the released files.
template <model_config C>
std::string config_to_json() {
  static_assert(valid<C>());
  return detail::config_to_json(C);
}

}  // namespace dsv4::io
