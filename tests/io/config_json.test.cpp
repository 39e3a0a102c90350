// SPDX-License-Identifier: Apache-2.0
// A config.json must say what the model was compiled for, in every key: the wrong model is refused before a
// single weight is read.
#include "support/catch.hpp"
#include <dsv4/blocks/attention_cache.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/io/config_json.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>
#include <unistd.h>
#include <vector>

using namespace dsv4;
using dsv4::testing::contains;
using nlohmann::json;

namespace {

/// Keys and values as V4-Flash was released with them, and some that the model does not depend on.
json released_flash() {
  json c = json::parse(R"({
    "architectures": ["DeepseekV4ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 1, "hc_eps": 1e-06, "hc_mult": 4, "hc_sinkhorn_iters": 20,
    "head_dim": 512, "hidden_act": "silu", "hidden_size": 4096, "index_head_dim": 128,
    "index_n_heads": 64, "index_topk": 512, "initializer_range": 0.02,
    "max_position_embeddings": 1048576, "model_type": "deepseek_v4", "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 64,
    "num_experts_per_tok": 6, "num_hash_layers": 3, "num_hidden_layers": 43, "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1, "o_groups": 8, "o_lora_rank": 1024, "q_lora_rank": 1024,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000, "compress_rope_theta": 160000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16,
                     "original_max_position_embeddings": 65536, "type": "yarn"},
    "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 128,
    "swiglu_limit": 10.0, "tie_word_embeddings": false, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "vocab_size": 129280, "use_cache": true,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})");
  c["compress_ratios"] = {0, 0};
  for (int i = 0; i < 20; ++i) c["compress_ratios"].insert(c["compress_ratios"].end(), {4, 128});
  c["compress_ratios"].insert(c["compress_ratios"].end(), {4, 0});
  return c;
}

json released_pro() {
  json c = released_flash();
  c.update({{"hidden_size", 7168},
            {"num_hidden_layers", 61},
            {"num_attention_heads", 128},
            {"q_lora_rank", 1536},
            {"o_groups", 16},
            {"index_topk", 1024},
            {"n_routed_experts", 384},
            {"moe_intermediate_size", 3072},
            {"routed_scaling_factor", 2.5}});
  c["compress_ratios"] = {128, 128};
  for (int i = 0; i < 29; ++i) c["compress_ratios"].insert(c["compress_ratios"].end(), {4, 128});
  c["compress_ratios"].insert(c["compress_ratios"].end(), {4, 0});
  return c;
}

/// V4-Flash in the keys of newer tools.
json respelled_flash() {
  json c = released_flash();
  for (const char* key : {"compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_theta",
                          "compress_rope_theta", "rope_scaling"})
    c.erase(key);
  for (int i = 0; i < 43; ++i) {
    c["layer_types"].push_back(i < 2   ? "sliding_attention"
                               : i % 2 ? "heavily_compressed_attention"
                                       : "compressed_sparse_attention");
    c["mlp_layer_types"].push_back(i < 3 ? "hash_moe" : "moe");
  }
  c["compress_rates"] = {{"compressed_sparse_attention", 4}, {"heavily_compressed_attention", 128}};
  c["partial_rotary_factor"] = 0.125;
  c["rope_parameters"]["main"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
  c["rope_parameters"]["compress"] = {{"rope_type", "yarn"}, {"rope_theta", 160000.0},
                                      {"factor", 16},        {"beta_fast", 32},
                                      {"beta_slow", 1},      {"original_max_position_embeddings", 65536}};
  c["rope_scaling"] = nullptr;
  return c;
}

template <model_config C>
void check(const json& config) {
  io::check_config<C>(config.dump(), "config.json");
}

/// What check_config says about `config`; empty when it accepts.
template <model_config C = v4_flash>
std::string verdict(const json& config) {
  try {
    check<C>(config);
  } catch (const format_error& refusal) {
    return refusal.what();
  }
  return "";
}

bool says(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// A folder of its own, gone afterwards.
struct scratch {
  std::filesystem::path folder;
  scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "dsv4-config-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
  }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  ~scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  std::filesystem::path write(const std::string& text) const {
    std::ofstream(folder / "config.json") << text;
    return folder / "config.json";
  }
};

/// Bytes that a sequence of `length` tokens stores, without a model.
template <model_config C>
std::int64_t cache_bytes(std::int64_t length) {
  std::int64_t sum = 0;
  for (int i = 0; i < C.num_hidden_layers(); ++i)
    sum += attention_cache<float>::bytes(C.attention, C.kind(i), length);
  return sum;
}

template <model_config C>
void round_trip() {
  const std::string text = io::config_to_json<C>();
  CHECK_NOTHROW(io::check_config<C>(text, "config.json"));
  const scratch place;
  const auto path = place.write(text);
  CHECK_NOTHROW(io::check_config<C>(path));
  CHECK(io::model_type_of(path) == "deepseek_v4");
}

}  // namespace

TEST_CASE("config_to_json writes what check_config accepts") {
  SECTION("Flash") { round_trip<v4_flash>(); }
  SECTION("Pro") { round_trip<v4_pro>(); }
  SECTION("nano") { round_trip<v4_nano>(); }
  SECTION("bench") { round_trip<v4_bench>(); }
  SECTION("equal ratios need layer_types") {
    static constexpr model_config equal = [] {
      model_config c = v4_nano;
      c.attention.hca_compress_ratio = c.attention.csa_compress_ratio;
      return c;
    }();
    round_trip<equal>();
    json c = json::parse(io::config_to_json<equal>());
    c.erase("layer_types");
    CHECK(says(verdict<equal>(c), "layer_types: missing"));
  }
}

TEST_CASE("Flash and Pro are planned from config.json with no weights") {
  CHECK_NOTHROW(check<v4_flash>(released_flash()));
  CHECK_NOTHROW(check<v4_flash>(respelled_flash()));
  CHECK_NOTHROW(check<v4_pro>(released_pro()));
  CHECK(count_parameters(v4_flash).main / 100'000'000 == 2843);
  CHECK(count_parameters(v4_pro).main / 100'000'000 == 15729);
  // 2^20 tokens: 43 (61) windows of 128 x 512; 21 (30) CSA layers of 2^18 x (512 + 128); 20 (31) HCA layers
  // of 2^13 x 512.
  constexpr std::int64_t length = 1 << 20;
  CHECK(cache_bytes<v4_flash>(length) ==
        4LL * (43 * 128 * 512 + 21 * (length / 4) * 640 + 20 * (length / 128) * 512));
  CHECK(cache_bytes<v4_pro>(length) ==
        4LL * (61 * 128 * 512 + 30 * (length / 4) * 640 + 31 * (length / 128) * 512));
}

TEST_CASE("Flash is not Pro: one error lists every difference") {
  const std::string text = verdict<v4_pro>(released_flash());
  for (const char* part :
       {"hidden_size: this model has 7168, the file has 4096",
        "num_hidden_layers: this model has 61, the file has 43",
        "num_attention_heads: this model has 128, the file has 64",
        "q_lora_rank: this model has 1536, the file has 1024", "o_groups: this model has 16, the file has 8",
        "index_topk: this model has 1024, the file has 512",
        "n_routed_experts: this model has 384, the file has 256",
        "moe_intermediate_size: this model has 3072, the file has 2048",
        "routed_scaling_factor: this model has 2.5, the file has 1.5",
        "compress_ratios: this model has 62 entries, the file has 44 entries", "10 differences"})
    CHECK(says(text, part));
}

TEST_CASE("Pro starts with two HCA layers") {
  json c = released_pro();
  c["compress_ratios"][0] = c["compress_ratios"][1] = 0;
  const std::string text = verdict<v4_pro>(c);
  CHECK(says(text, "2 differences"));
  CHECK(says(text, "compress_ratios[0]: this model has 128, the file has 0"));
  CHECK(says(text, "compress_ratios[1]: this model has 128, the file has 0"));
}

TEST_CASE("compress_rope_theta 40000 is refused") {
  json c = released_flash();
  c["compress_rope_theta"] = 40000;
  CHECK(says(verdict(c), "compress_rope_theta: this model has 160000.0, the file has 40000"));
  json nested = respelled_flash();
  nested["rope_parameters"]["compress"]["rope_theta"] = 40000;
  CHECK(says(verdict(nested),
             "rope_parameters.compress.rope_theta: this model has 160000.0, the file has 40000"));
}

TEST_CASE("there are no defaults: each missing key is named") {
  const json whole = json::parse(io::config_to_json<v4_flash>());
  for (const auto& [key, value] : whole.items()) {
    json c = whole;
    c.erase(key);
    CHECK_THROWS_AS(check<v4_flash>(c), format_error);
    CHECK(says(verdict(c), key == "model_type" ? "model_type: expected" : key + ": missing"));
    c[key] = nullptr;
    CHECK_THROWS_AS(check<v4_flash>(c), format_error);
  }
  for (const auto& [key, value] : whole["rope_scaling"].items()) {
    json c = whole;
    c["rope_scaling"].erase(key);
    CHECK(says(verdict(c), "rope_scaling." + key + ": missing"));
  }
  const json other = respelled_flash();
  for (const char* key :
       {"layer_types", "mlp_layer_types", "compress_rates", "partial_rotary_factor", "rope_parameters"}) {
    json c = other;
    c.erase(key);
    CHECK_THROWS_AS(check<v4_flash>(c), format_error);
  }
  for (const char* part : {"main", "compress"}) {
    json c = other;
    c["rope_parameters"].erase(part);
    CHECK_THROWS_AS(check<v4_flash>(c), format_error);
  }
  CHECK(says(verdict(json{{"model_type", "deepseek_v4"}}), "vocab_size: missing (this model has 129280)"));
}

TEST_CASE("every value and every type counts") {
  const json whole = json::parse(io::config_to_json<v4_flash>());
  for (const auto& [key, value] : whole.items())
    for (const json& wrong : {json(7), json(-1), json(0.3), json("7"), json(false), json(json::array()),
                              json(json::object()), json(18446744073709551615U), json(1e300), json(true)}) {
      if (wrong == value) continue;
      json c = whole;
      c[key] = wrong;
      INFO(key << " = " << wrong.dump());
      CHECK_THROWS_AS(check<v4_flash>(c), format_error);
      CHECK(says(verdict(c), key));
    }
  json c = whole;
  c["head_dim"] = 512.0;  // a whole number is written as one
  CHECK(says(verdict(c), "head_dim: this model has 512, the file has 512.0"));
  c = whole;
  c["rope_scaling"]["rope_type"] = "linear";
  CHECK(says(verdict(c), "rope_scaling.rope_type: this model has \"yarn\", the file has \"linear\""));
  c = whole;
  c["rope_scaling"]["attention_factor"] = 1.2772588722239782;  // cosines are not scaled
  CHECK(says(verdict(c), "rope_scaling.attention_factor"));
  c = whole;
  c["scoring_func"] = "sigmoid";
  CHECK(says(verdict(c), "scoring_func: this model has \"sqrtsoftplus\", the file has \"sigmoid\""));
}

TEST_CASE("two spellings of one thing must both agree") {
  json c = respelled_flash();
  c.update(released_flash());
  CHECK_NOTHROW(check<v4_flash>(c));
  for (const char* key : {"layer_types", "mlp_layer_types"}) {
    json wrong = c;
    wrong[key][5] = "other";
    CHECK(says(verdict(wrong), std::string(key) + "[5]: this model has"));
    wrong[key] = json::array({"moe"});
    CHECK(says(verdict(wrong), std::string(key) + ": this model has 43 entries, the file has 1 entries"));
  }
  json wrong = c;
  wrong["compress_rates"]["heavily_compressed_attention"] = 64;
  CHECK(says(verdict(wrong), "compress_rates.heavily_compressed_attention: this model has 128"));
  wrong = c;
  wrong["partial_rotary_factor"] = 0.25;
  CHECK(says(verdict(wrong), "partial_rotary_factor: this model has 0.125, the file has 0.25"));
  wrong = c;
  wrong["rope_parameters"]["main"]["rope_theta"] = 5000;
  CHECK(says(verdict(wrong), "rope_parameters.main.rope_theta: this model has 10000.0, the file has 5000"));
  wrong = c;
  wrong["rope_scaling"] = 3;
  CHECK(says(verdict(wrong), "rope_scaling.factor: missing"));
}

TEST_CASE("compress_ratios: with or without the entry of the MTP block, nothing shorter or longer") {
  json c = released_flash();
  c["compress_ratios"].erase(43);
  CHECK_NOTHROW(check<v4_flash>(c));
  c["compress_ratios"].erase(42);
  CHECK(says(verdict(c), "compress_ratios: this model has 44 entries, the file has 42 entries"));
  c = released_flash();
  c["compress_ratios"].push_back(0);  // three-stage drafters have more entries
  CHECK(says(verdict(c), "compress_ratios: this model has 44 entries, the file has 45 entries"));
  c = released_flash();
  c["compress_ratios"][43] = 4;
  CHECK(says(verdict(c), "compress_ratios[43]: this model has 0, the file has 4"));
  c = released_flash();
  c["compress_ratios"][3] = -128;
  CHECK(says(verdict(c), "compress_ratios[3]: this model has 128, the file has -128"));
}

TEST_CASE("other models are refused by name, with the names of those supported") {
  for (const char* type : {"deepseek_v41", "deepseek_v3", "", "llama"}) {
    json c = released_flash();
    c["model_type"] = type;
    CHECK_THROWS_WITH(check<v4_flash>(c), contains("deepseek_v4 (V4-Flash and V4-Pro, April 2026)"));
    CHECK_THROWS_WITH(check<v4_flash>(c), contains(std::string("'") + type + "'"));
  }
}

TEST_CASE("hostile config files are format errors") {
  const std::string deep(200000, '[');
  const std::string good = released_flash().dump();
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), deep, good + "x",
        good.substr(0, good.size() / 2), good + std::string(1, '\0'), std::string("{\"a\": NaN}"),
        std::string("{\"rope_theta\": 1e999}"), std::string("{\"a\": \"\xff\"}"),
        "{\"a\":" + deep + std::string(200000, ']') + "}", "{\"hidden_size\": 4096," + good.substr(1),
        std::string("{\"model_type\": 4}"), std::string(std::size_t{1} << 25U, ' ')})
    CHECK_THROWS_AS(io::check_config<v4_flash>(text, "config.json"), format_error);
  CHECK_THROWS_WITH(io::check_config<v4_flash>("{\"hidden_size\": 4096," + good.substr(1), "config.json"),
                    contains("duplicate key 'hidden_size'"));
  const scratch place;
  CHECK_THROWS_AS(io::check_config<v4_flash>(place.folder / "absent.json"), io_error);
  CHECK_THROWS_AS(io::model_type_of(place.write("{}")), format_error);
  CHECK_THROWS_WITH(io::check_config<v4_flash>(place.write("{}")), contains("config.json"));
}
