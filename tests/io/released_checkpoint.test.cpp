// SPDX-License-Identifier: Apache-2.0
// Checkpoints in the released layout: FP8 and FP4 with E8M0 scales, BF16, F32 and I64, in one file or shards.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/io/expert_cache.hpp>
#include <dsv4/model/quantise_parameters.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <numeric>

using namespace dsv4;

namespace {

// No two sizes equal, none a multiple of a block: partial tiles of 128 and partial groups of 32 everywhere.
constexpr model_config tiny = [] {
  model_config c = testing::golden(schedule({testing::S, testing::C, testing::H}), 1);
  c.hidden_size = 148;
  c.vocab_size = 70;
  c.attention.q_lora_rank = 50;
  c.attention.head_dim = 72;
  c.attention.index_head_dim = 32;
  c.attention.o_lora_rank = 20;
  c.moe.n_routed_experts = 7;
  c.moe.moe_intermediate_size = 46;
  c.num_nextn_predict_layers = 1;
  return c;
}();
constexpr std::int64_t tokens = 21;

class temporary_folder {
 public:
  temporary_folder() {
    static int count = 0;
    path = std::filesystem::temp_directory_path() /
           ("dsv4_released_" + std::to_string(reinterpret_cast<std::uintptr_t>(&count)) + "_" +
            std::to_string(std::chrono::steady_clock::now().time_since_epoch().count()) + "_" +
            std::to_string(count++));
  }
  ~temporary_folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

template <numerics_config Q>
using store = parameter_store<tiny, float, Q>;

template <numerics_config Q>
void make(store<Q>& out) {
  parameter_store<tiny, float> wide;
  initialise_by_name(wide, 3);
  quantise_parameters(exec::cpu(2), wide, out);
}

template <numerics_config Q>
std::vector<float> logits_of(const model_parameters<float, Q>& weights) {
  using model = transformer<tiny, float, Q>;
  std::vector<std::int32_t> ids(tokens);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 13 % tiny.vocab_size);
  typename model::state state;
  workspace w;
  std::vector<float> logits(tokens * tiny.vocab_size);
  for (std::int64_t at = 0; at < tokens;) {  // a prompt, then single tokens
    const std::int64_t n = at == 0 ? 15 : 1;
    const typename model::segment segment{&state, n};
    model::forward(exec::cpu(2), w, weights, {std::span(&segment, 1), {ids.data() + at, n}, logit_rows::all},
                   {{logits.data() + at * tiny.vocab_size, n, tiny.vocab_size}, {}});
    at += n;
  }
  return logits;
}

std::string contents(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <numerics_config Q>
void check_round_trip() {
  store<Q> original;
  make(original);
  const auto expected = logits_of<Q>(original.views());
  temporary_folder folder, again;
  io::save_checkpoint(folder.path, original, 200'000);

  const auto source = std::make_shared<const io::safetensors_checkpoint>(folder.path);
  CHECK(source->shard_names().size() > 1);
  for (const auto& shard : source->shards())
    CHECK(std::filesystem::file_size(shard.path()) < 200'000 + 20'000);  // the header is not counted

  store<Q> copied, mapped;
  io::load_parameters(*source, copied);
  io::load_parameters(source, mapped);
  CHECK(logits_of<Q>(copied.views()) == expected);
  CHECK(logits_of<Q>(mapped.views()) == expected);
  if constexpr (!storage_types<float, Q>::plain) CHECK(mapped.bytes() < copied.bytes());

  io::save_checkpoint(again.path, mapped, 200'000);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path)) {
    INFO(entry.path().filename());
    CHECK(contents(entry.path()) == contents(again.path / entry.path().filename()));
  }
  CHECK_THROWS_AS(io::save_checkpoint(again.path, mapped), io_error);  // never over another one

  // What the layout lists is what the files hold.
  std::size_t listed = 0;
  io::for_each_tensor<tiny, float, Q>([&](const io::tensor_spec& spec) {
    INFO(spec.name);
    const auto* found = source->find(spec.name);
    REQUIRE(found);
    CHECK(found->shape == spec.shape);
    CHECK(found->dtype == spec.dtype);
    ++listed;
  });
  CHECK(listed == source->tensor_count());
}

/// The tensors of a saved v4_released checkpoint, edited, as the message of loading them.
struct raw_tensor {
  io::dtype type;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};
template <numerics_config Into>
std::string load_message(const std::function<void(std::map<std::string, raw_tensor>&)>& edit, bool shared) {
  store<numerics::v4_released> weights;
  make(weights);
  temporary_folder folder;
  io::save_checkpoint(folder.path, weights);
  std::map<std::string, raw_tensor> all;
  {
    const io::safetensors_checkpoint saved(folder.path);
    saved.for_each([&](const io::tensor_info& t, std::span<const std::byte> bytes) {
      all[t.name] = {t.dtype, t.shape, {bytes.begin(), bytes.end()}};
    });
  }
  edit(all);
  io::safetensors_writer writer;
  for (const auto& [name, t] : all) writer.add(name, t.type, t.shape, t.bytes);
  writer.write(folder.path / io::checkpoint_single_name);
  store<Into> fresh;
  try {
    const auto source = std::make_shared<const io::safetensors_checkpoint>(folder.path);
    if (shared)
      io::load_parameters(source, fresh);
    else
      io::load_parameters(*source, fresh);
  } catch (const format_error& failure) {
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

TEMPLATE_TEST_CASE_SIG("load(save(x)) is x, bit for bit", "", ((int I), I), 0, 1, 2, 3, 4) {
  constexpr numerics_config all[] = {numerics::v4_released, numerics::v4_released_base, numerics::bf16,
                                     numerics::mxfp4_experts_only, numerics::float32};
  check_round_trip<all[I]>();
}

TEST_CASE("the released layout: names, dtypes and shapes of Flash and Pro") {
  using shape = std::vector<std::int64_t>;
  std::map<std::string, io::tensor_spec> pro, base;
  std::uint64_t bytes = 0;
  io::for_each_tensor<v4_pro, float, numerics::v4_released>([&](const io::tensor_spec& t) {
    pro[t.name] = t;
    bytes += *io::tensor_bytes(t.dtype, t.shape);
  });
  const auto check = [&](auto& all, const char* name, io::dtype type, const shape& s) {
    INFO(name);
    REQUIRE(all.contains(name));
    CHECK(all[name].dtype == type);
    CHECK(all[name].shape == s);
  };
  using io::dtype;
  // Specification, section 12.
  check(pro, "embed.weight", dtype::bf16, {129280, 7168});
  check(pro, "norm.weight", dtype::bf16, {7168});
  check(pro, "hc_head_fn", dtype::f32, {4, 28672});
  check(pro, "layers.5.hc_attn_fn", dtype::f32, {24, 28672});
  check(pro, "layers.5.attn.wq_a.weight", dtype::f8_e4m3, {1536, 7168});
  check(pro, "layers.5.attn.wq_a.scale", dtype::f8_e8m0, {12, 56});
  check(pro, "layers.5.attn.wo_a.weight", dtype::f8_e4m3, {16384, 4096});
  check(pro, "layers.5.attn.wo_a.scale", dtype::f8_e8m0, {128, 32});
  check(pro, "layers.5.attn.attn_sink", dtype::f32, {128});
  check(pro, "layers.2.attn.compressor.ape", dtype::f32, {4, 1024});
  check(pro, "layers.2.attn.compressor.wkv.weight", dtype::bf16, {1024, 7168});
  check(pro, "layers.2.attn.indexer.wq_b.scale", dtype::f8_e8m0, {64, 12});
  check(pro, "layers.2.attn.indexer.weights_proj.weight", dtype::bf16, {64, 7168});
  check(pro, "layers.2.ffn.gate.tid2eid", dtype::i64, {129280, 6});
  check(pro, "layers.3.ffn.gate.bias", dtype::f32, {384});
  check(pro, "layers.3.ffn.experts.383.w1.weight", dtype::i8, {3072, 3584});
  check(pro, "layers.3.ffn.experts.383.w1.scale", dtype::f8_e8m0, {3072, 224});
  check(pro, "layers.3.ffn.experts.383.w2.weight", dtype::i8, {7168, 1536});
  check(pro, "layers.3.ffn.experts.383.w2.scale", dtype::f8_e8m0, {7168, 96});
  check(pro, "mtp.0.e_proj.scale", dtype::f8_e8m0, {56, 56});
  CHECK_FALSE(pro.contains("mtp.0.ffn.gate.tid2eid"));
  // 1.55T parameters of routed experts at 4.25 bits each are most of it.
  CHECK(bytes > 840e9);
  CHECK(bytes < 880e9);
  io::for_each_tensor<v4_flash, float, numerics::v4_released_base>(
      [&](const io::tensor_spec& t) { base[t.name] = t; });
  check(base, "layers.0.ffn.experts.0.w1.weight", dtype::f8_e4m3, {2048, 4096});
  check(base, "layers.0.ffn.experts.0.w1.scale", dtype::f8_e8m0, {16, 32});
}

TEST_CASE("headers alone, at full size, make a checkpoint that can be planned") {
  temporary_folder folder;
  io::save_headers<v4_flash, float, numerics::v4_released>(folder.path);
  std::uint64_t on_disk = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path)) on_disk += entry.file_size();
  CHECK(on_disk < 40'000'000);
  CHECK_THROWS_AS(io::safetensors_checkpoint(folder.path).tensor_count(),
                  format_error);  // the data is missing
  const io::safetensors_checkpoint headers(folder.path, io::file_access::map,
                                           io::file_contents::headers_only);
  CHECK(headers.total_bytes() > 140e9);
  CHECK(headers.shard_names().size() > 28);
  CHECK(headers.at("layers.42.ffn.experts.255.w3.weight").shape == std::vector<std::int64_t>{2048, 2048});
  CHECK_THROWS_AS(headers.bytes("layers.42.ffn.experts.255.w3.weight"), contract_error);
}

TEST_CASE("a wide model reads a released checkpoint by its values") {
  store<numerics::v4_released> narrow;
  make(narrow);
  temporary_folder folder;
  io::save_checkpoint(folder.path, narrow);
  parameter_store<tiny, float> wide;
  io::load_parameters(io::safetensors_checkpoint(folder.path), wide);
  const auto& n = narrow.views().layers[1];
  const auto& w = wide.views().layers[1];
  for (std::int64_t e = 0; e < tiny.moe.n_routed_experts; ++e)
    for (std::int64_t r = 0; r < tiny.moe.moe_intermediate_size; ++r)
      for (std::int64_t c = 0; c < tiny.hidden_size; ++c)
        REQUIRE(w.ffn.experts.w3(e, r, c) == n.ffn.experts.w3[e](r, c));
  for (std::int64_t g = 0; g < tiny.attention.o_groups; ++g)
    for (std::int64_t r = 0; r < tiny.attention.o_lora_rank; ++r)
      for (std::int64_t c = 0; c < w.attention.o_a.extent[2]; ++c)
        REQUIRE(w.attention.o_a(g, r, c) == n.attention.o_a[g](r, c));
  CHECK(w.ffn.gate(3, 5) == static_cast<float>(n.ffn.gate(3, 5)));
  CHECK(w.ffn_norm(4) == n.ffn_norm(4));
}

TEST_CASE("E8M0 copied as a number: scales are read as powers of two, NaN is refused, F8_E8M0 is no weight") {
  for (const bool shared : {false, true})
    for (const char* name : {"layers.0.attn.wq_b.scale", "layers.2.ffn.experts.6.w2.scale"})
      mentions(load_message<numerics::v4_released>([&](auto& t) { t[name].bytes.back() = std::byte{0xFF}; },
                                                   shared),
               {name, "NaN (0xFF)", "a power of two"});
  mentions(load_message<numerics::v4_released>(
               [](auto& t) { t["layers.0.attn.wq_b.scale"].type = io::dtype::u8; }, true),
           {"layers.0.attn.wq_b.scale", "dtype F8_E8M0", "U8"});
  mentions(load_message<numerics::v4_released>(
               [](auto& t) {
                 auto& norm = t["layers.0.attn_norm.weight"];
                 norm.type = io::dtype::f8_e8m0;
                 norm.bytes.resize(static_cast<std::size_t>(tiny.hidden_size));
               },
               true),
           {"layers.0.attn_norm.weight", "F8_E8M0"});
  CHECK(load_message<numerics::v4_released>([](auto&) {}, true).empty());
}

TEST_CASE("other formats than the model's are refused with both") {
  mentions(load_message<numerics::v4_released_base>([](auto&) {}, true),
           {"ffn.experts.0.w1.weight", "dtype F8_E4M3", "I8"});
  mentions(load_message<numerics::bf16>([](auto&) {}, true), {"dtype BF16", "F8_E4M3"});
  mentions(
      load_message<numerics::v4_released>([](auto& t) { t.erase("layers.1.ffn.experts.2.w1.scale"); }, true),
      {"layers.1.ffn.experts.2.w1.scale", "the scales of tensor", "none"});
  mentions(load_message<numerics::v4_released>(
               [](auto& t) {
                 auto& s = t["layers.1.ffn.experts.2.w1.scale"];
                 std::swap(s.shape[0], s.shape[1]);
               },
               true),
           {"layers.1.ffn.experts.2.w1.scale", "shape [46, 5]", "[5, 46]"});
  mentions(load_message<numerics::v4_released>(
               [](auto& t) { t["layers.1.attn.wo_a.scale2"] = t["layers.1.attn.wo_a.scale"]; }, true),
           {"wo_a.scale2", "nothing reads"});
}

TEST_CASE("MTP tensors ignored silently: another drafter's are refused, unless the caller ignores them") {
  const auto rename = [](auto& t) {
    auto node = t.extract("mtp.0.e_proj.weight");
    node.key() = "mtp.0.draft.0.proj.weight";
    t.insert(std::move(node));
  };
  mentions(load_message<numerics::v4_released>(rename, true), {"mtp.0.e_proj.weight", "none"});
}

TEST_CASE("experts in a quarter of their memory give identical logits") {
  store<numerics::v4_released> original, mapped;
  make(original);
  temporary_folder folder;
  io::save_checkpoint(folder.path, original);
  const auto source = std::make_shared<const io::safetensors_checkpoint>(folder.path);
  io::load_parameters(source, mapped, {.check_expert_scales = false});
  const auto expected = logits_of<numerics::v4_released>(original.views());
  using cache = io::expert_cache<tiny, float, numerics::v4_released>;
  const std::int64_t all = cache::total_experts() * cache::expert_bytes();
  for (const std::int64_t budget : {all / 4, cache::expert_bytes(), all, 4 * all}) {
    cache experts(mapped.views(), budget);
    CHECK(logits_of<numerics::v4_released>(mapped.views()) == expected);
    CHECK(experts.slots() * cache::expert_bytes() <= budget);
    CHECK(experts.always_misses() == (experts.slots() < 6));
    CHECK(experts.misses() >= (budget >= all ? 0 : experts.slots()));
    if (budget >= all) CHECK(experts.misses() <= cache::total_experts());
  }
  CHECK(mapped.views().layers[0].ffn.source == nullptr);  // the end of the cache gives the experts back
  CHECK(logits_of<numerics::v4_released>(mapped.views()) == expected);
  CHECK_THROWS_AS(cache(mapped.views(), cache::expert_bytes() - 1), contract_error);
}

// The difference that the formats make on random weights, which no training has made robust: an upper bound
// for what users will see, and far above what a mistake in one rounding would hide under.
TEST_CASE("FP32 against the quantised forms: each narrower format is further away") {
  parameter_store<tiny, float> wide;
  initialise_by_name(wide, 3);
  const auto exact = logits_of<numerics::float32>(wide.views());
  const auto error = [&]<numerics_config Q>() {
    store<Q> narrow;
    quantise_parameters(exec::cpu(2), wide, narrow);
    const auto rounded = logits_of<Q>(narrow.views());
    double squares = 0, norm = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      squares += (double(rounded[i]) - exact[i]) * (double(rounded[i]) - exact[i]);
      norm += double(exact[i]) * exact[i];
    }
    return std::sqrt(squares / norm);
  };
  const double bf16_error = error.operator()<numerics::bf16>(),
               fp4_error = error.operator()<numerics::mxfp4_experts_only>(),
               released = error.operator()<numerics::v4_released>();
  WARN("relative error of the logits: bf16 " << bf16_error << ", mxfp4_experts_only " << fp4_error
                                             << ", v4_released " << released);
  CHECK(bf16_error > 1e-4);
  CHECK(bf16_error < fp4_error);
  CHECK(fp4_error < released);
  CHECK(released < 1);
}
