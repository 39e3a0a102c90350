// SPDX-License-Identifier: Apache-2.0
// Weights to a file and back, and every way in which a file can be the wrong one.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/checkpoint_writer.hpp>

#include <filesystem>
#include <functional>
#include <map>

using namespace dsv4;

namespace {

constexpr model_config tiny = [] {
  model_config c = testing::golden(schedule({testing::S, testing::C, testing::H}), 1);
  c.hidden_size = 12;
  c.vocab_size = 7;
  c.attention.q_lora_rank = 5;
  c.attention.num_attention_heads = 2;
  c.attention.head_dim = 10;
  c.attention.index_n_heads = 3;
  c.attention.o_lora_rank = 4;
  c.moe.n_routed_experts = 3;
  c.moe.moe_intermediate_size = 9;
  c.num_nextn_predict_layers = 1;
  return c;
}();
using store = parameter_store<tiny, float>;

struct temporary_file {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("dsv4_checkpoint_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)));
  ~temporary_file() { std::filesystem::remove(path); }
};

struct raw_tensor {
  io::dtype type;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

/// The tensors of a saved model, for editing.
std::map<std::string, raw_tensor> saved_tensors() {
  store weights;
  initialise_by_name(weights);
  temporary_file file;
  io::save_parameters(file.path, weights);
  const io::safetensors_file saved(file.path);
  std::map<std::string, raw_tensor> tensors;
  for (const auto& t : saved.tensors()) {
    const auto bytes = saved.bytes(t);
    tensors[t.name] = {t.dtype, t.shape, {bytes.begin(), bytes.end()}};
  }
  return tensors;
}

/// The message of loading the edited tensors; empty when it works.
std::string load_message(const std::function<void(std::map<std::string, raw_tensor>&)>& edit,
                         store* out = nullptr) {
  auto tensors = saved_tensors();
  edit(tensors);
  temporary_file file;
  io::safetensors_writer writer;
  for (const auto& [name, t] : tensors) writer.add(name, t.type, t.shape, t.bytes);
  writer.write(file.path);
  store fresh;
  try {
    io::load_parameters(io::safetensors_file(file.path), out ? *out : fresh);
  } catch (const format_error& failure) {
    CHECK(std::string(failure.what()).find(file.path.string()) != std::string::npos);
    return failure.what();
  }
  return "";
}

bool mentions(const std::string& message, std::initializer_list<const char*> parts) {
  INFO(message);
  for (const char* part : parts) CHECK(message.find(part) != std::string::npos);
  return true;
}

}  // namespace

TEST_CASE("load(save(x)) is x, bit for bit") {
  store weights, again;
  initialise_by_name(weights, 5);
  temporary_file file;
  io::save_parameters(file.path, weights);
  io::load_parameters(io::safetensors_file(file.path), again);
  std::vector<std::vector<std::byte>> first, second;
  const auto collect = [](auto& into) {
    return [&into]<class U, int R>(const parameter_info&, view<U, R>& v) {
      const auto bytes = std::as_bytes(std::span(v.data, static_cast<std::size_t>(v.size())));
      into.emplace_back(bytes.begin(), bytes.end());
    };
  };
  for_each_parameter<tiny>(weights.views(), collect(first));
  for_each_parameter<tiny>(again.views(), collect(second));
  CHECK(first == second);
}

TEST_CASE("a missing tensor is named") {
  for (const char* name :
       {"embed.weight", "layers.1.attn.indexer.compressor.ape", "layers.2.ffn.experts.1.w2.weight",
        "mtp.0.e_proj.weight", "layers.1.ffn.gate.bias"})
    mentions(load_message([&](auto& t) { t.erase(name); }), {name, "found none"});
}

TEST_CASE("MTP tensors ignored silently: an unread tensor is an error") {
  const std::string message = load_message([](auto& t) { t["mtp.1.norm.weight"] = t["norm.weight"]; });
  mentions(message, {"mtp.1.norm.weight", "F32 [12]", "nothing reads"});
}

TEST_CASE("a wrong shape is refused with both shapes") {
  mentions(load_message([](auto& t) {
             t["layers.0.attn.wq_a.weight"].shape = {12, 5};
           }),
           {"layers.0.attn.wq_a.weight", "shape [5, 12]", "[12, 5]"});
}

TEST_CASE("sink read as bf16 although stored FP32: narrow types are refused where 32 bits are the rule") {
  const auto narrow = [](raw_tensor& t) {
    std::vector<std::byte> half;
    for (std::size_t i = 0; i < t.bytes.size(); i += 4)
      half.insert(half.end(), {t.bytes[i + 2], t.bytes[i + 3]});
    t.bytes = half;
    t.type = io::dtype::bf16;
  };
  for (const char* name : {"layers.0.attn.attn_sink", "layers.1.attn.compressor.ape", "layers.2.hc_ffn_fn",
                           "layers.1.ffn.gate.bias", "hc_head_scale"})
    mentions(load_message([&](auto& t) { narrow(t[name]); }), {name, "F32 or F64", "BF16"});
  store weights;
  CHECK(load_message([&](auto& t) { narrow(t["layers.0.attn_norm.weight"]); }, &weights).empty());
  CHECK(std::abs(weights.views().layers[0].attention_norm(0) - 1) <= 0.21f);
}

TEST_CASE("unknown dtype read as something else: FP8 without scales, halves and integers are refused") {
  const auto retype = [](io::dtype type, std::size_t bytes) {
    return [=](auto& t) {
      auto& w = t["layers.0.attn.wkv.weight"];
      w.type = type;
      w.bytes.resize(w.bytes.size() / 4 * bytes);
    };
  };
  mentions(load_message(retype(io::dtype::f8_e4m3, 1)),
           {"layers.0.attn.wkv.scale", "the scales of tensor \"layers.0.attn.wkv.weight\"", "none"});
  mentions(load_message(retype(io::dtype::f8_e8m0, 1)),
           {"layers.0.attn.wkv.weight", "F32, F64 or BF16", "F8_E8M0"});
  mentions(load_message(retype(io::dtype::f16, 2)), {"layers.0.attn.wkv.weight", "F32, F64 or BF16", "F16"});
  mentions(load_message(retype(io::dtype::i32, 4)), {"layers.0.attn.wkv.weight", "I32"});
}

TEST_CASE("hash layers: I64 tables load, entries that are no expert are refused") {
  const auto table = [](std::int64_t entry) {
    return [=](auto& t) {
      auto& table = t["layers.0.ffn.gate.tid2eid"];
      std::vector<std::int64_t> ids(14, 2);
      ids[13] = entry;
      table.type = io::dtype::i64;
      const auto bytes = std::as_bytes(std::span(ids));
      table.bytes.assign(bytes.begin(), bytes.end());
    };
  };
  store weights;
  CHECK(load_message(table(1), &weights).empty());
  CHECK(weights.views().layers[0].ffn.tid2eid(6, 1) == 1);
  mentions(load_message(table(3)), {"tid2eid", "element 13", "from 0 to 2", "found 3"});
  mentions(load_message(table(-1)), {"tid2eid", "found -1"});
  mentions(load_message(table(std::int64_t{1} << 32)), {"tid2eid", "found 4294967296"});
}

TEST_CASE("names: released and Hugging Face") {
  CHECK(io::hugging_face_name("layers.7.attn.wq_a.weight") == "model.layers.7.self_attn.q_a_proj.weight");
  CHECK(io::hugging_face_name("layers.60.ffn.gate.bias") ==
        "model.layers.60.mlp.gate.e_score_correction_bias");
  CHECK(io::hugging_face_name("head.weight") == "lm_head.weight");
  CHECK_FALSE(io::hugging_face_name("mtp.0.norm.weight"));
  CHECK(io::fused_expert_name("layers.3.ffn.experts.*.w3.weight") ==
        "model.layers.3.mlp.experts.gate_up_proj");
  CHECK(io::fused_expert_name("layers.3.ffn.experts.*.w2.weight") == "model.layers.3.mlp.experts.down_proj");
}

TEST_CASE(
    "shape rules that hold only for Flash: every shape of Pro and Flash follows from its configuration") {
  // Without weights: the table of names and shapes alone, against the released listing.
  std::map<std::string, std::vector<std::int64_t>> pro, flash;
  model_parameters<float> views;
  for_each_parameter<v4_pro>(views, [&](const parameter_info& i, auto&) { pro[i.name] = i.shape; });
  for_each_parameter<v4_flash>(views, [&](const parameter_info& i, auto&) { flash[i.name] = i.shape; });
  using shape = std::vector<std::int64_t>;
  CHECK(pro["layers.0.attn.wo_a.weight"] == shape{16, 1024, 4096});
  CHECK(pro["layers.0.attn.wo_b.weight"] == shape{7168, 16384});
  CHECK(pro["layers.0.attn.wq_b.weight"] == shape{65536, 1536});
  CHECK(pro["layers.0.attn.compressor.ape"] == shape{128, 512});
  CHECK(pro["layers.2.attn.compressor.ape"] == shape{4, 1024});
  CHECK(pro["layers.2.attn.indexer.wq_b.weight"] == shape{8192, 1536});
  CHECK(pro["layers.2.attn.indexer.compressor.wkv.weight"] == shape{256, 7168});
  CHECK(pro["layers.2.ffn.gate.tid2eid"] == shape{129280, 6});
  CHECK(pro.contains("layers.3.ffn.gate.bias"));
  CHECK_FALSE(pro.contains("layers.2.ffn.gate.bias"));
  CHECK(pro["layers.60.ffn.experts.*.w2.weight"] == shape{384, 7168, 3072});
  CHECK(pro["mtp.0.h_proj.weight"] == shape{7168, 7168});
  CHECK_FALSE(flash.contains("layers.1.attn.compressor.ape"));
  CHECK(flash["layers.2.attn.wq_a.weight"] == shape{1024, 4096});
  CHECK(flash["layers.42.attn.wo_a.weight"] == shape{8, 1024, 4096});
  std::int64_t count = 0;
  for (const auto& [name, s] : pro)
    if (!name.ends_with("tid2eid")) {
      std::int64_t n = 1;
      for (std::int64_t e : s) n *= e;
      count += n;
    }
  CHECK(count == count_parameters(v4_pro).with_mtp());
}
