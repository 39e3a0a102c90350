// SPDX-License-Identifier: Apache-2.0
// The checker finds known bugs: each row of the tables below is an engine that makes one mistake in one
// place, and where and as what the checker must report it. The engines are our blocks under a policy in which
// that one op goes wrong; what follows from it is computed, as it would be in a real engine.
#include "../../examples/conformance/checker.hpp"
#include "../../examples/conformance/make_suite.hpp"
#include "mutant.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <filesystem>
#include <string>
#include <unistd.h>

using namespace dsv4;
using conformance::recorder;

namespace {

namespace fs = std::filesystem;

/// The suite, made once.
const conformance::checker& checker() {
  struct suite_folder {
    fs::path path = fs::temp_directory_path() / ("dsv4_known_bugs_" + std::to_string(getpid()));
    suite_folder() { conformance::make_suite(path); }
    ~suite_folder() { fs::remove_all(path); }
  };
  static const suite_folder made;
  static const conformance::checker c(made.path, conformance::precision::f32);
  return c;
}

const conformance::test_vector& vector(const std::string& name) {
  for (const auto& v : checker().vectors().vectors)
    if (v.name == name) return v;
  throw std::runtime_error("no vector " + name);
}

template <model_config C, numerics_config Q>
conformance::tensor_map dump_model(const testing::mutation& m, const std::vector<std::int32_t>& ids,
                                   bool extras = false) {
  parameter_store<C, double, Q> weights;
  conformance::suite_weights<C, double, Q>(exec::reference{}, weights);
  recorder to;
  to.extras = extras;
  conformance::record_model<C, double, Q>(testing::mutant{&m}, to, weights, ids);
  return std::move(to.tensors);
}

/// All tensors of the vector of one op.
template <class P>
conformance::tensor_map run_op(const P& p, const std::string& wanted) {
  recorder to;
  conformance::for_each_op_vector(
      [&](const std::string& name, const char*, const std::vector<std::string>&, const auto& body) {
        if (name != wanted) return;
        conformance::workbench<double, P> bench(p, to, name);
        body(bench);
      });
  return std::move(to.tensors);
}

void expect_divergence(const conformance::report& r, const std::string& tensor, const std::string& op,
                       const std::string& row) {
  REQUIRE(r.first);
  const auto& d = *r.first;
  INFO(d.tensor << ", " << d.op << ", " << d.place << ": " << d.mistake);
  CHECK(d.tensor == tensor);
  CHECK(d.op == op);
  CHECK_FALSE(d.mistake.empty());
  CHECK(std::find(d.rows.begin(), d.rows.end(), row) != d.rows.end());
  CHECK(d.unseen.empty());
  if (tensor.starts_with("layers.")) CHECK(d.layer == tensor.substr(0, 8));
}

struct bug {
  const char* name;
  int call;            ///< the n-th call that can go wrong
  const char* tensor;  ///< where it must be found
  const char* op;
  const char* row;  ///< in docs/reported-bugs.md
};

}  // namespace

// Layers: window, CSA, HCA, CSA, then the drafting block. rope is called for entries (in CSA also for
// the indexer's and its queries), queries, keys and outputs: 3 times in layer 0, 6 in CSA, 4 in HCA.
TEST_CASE("known bugs: a model of all layer kinds") {
  const auto [name, call, tensor, op, row] = GENERATE(values<bug>({
      {"half-split", 0, "layers.0.attn.q_rope", "rope", "1"},
      {"half-split", 5, "layers.1.attn.indexer.q_rope", "rope", "1"},
      {"half-split", 4, "layers.1.attn.indexer.compressor.rope", "rope", "1"},
      {"first channels", 7, "layers.1.attn.kv_rope", "rope", "2"},
      {"no inverse", 2, "layers.2.attn.o_unrope", "rope", "3"},
      {"inverse ignored", 1, "layers.1.attn.o_unrope", "rope", "4"},
      {"other table", 10, "layers.2.attn.q_rope", "rope", "6"},
      {"no yarn", 3, "layers.1.attn.compressor.rope", "rope", "6"},
      {"wavelengths", 1, "layers.0.attn.kv_rope", "rope", "8"},
      {"entry index", 0, "layers.1.attn.compressor.rope", "rope", "10"},
      {"entry index", 2, "layers.2.attn.compressor.rope", "rope", "10"},
      {"compressed table", 19, "mtp.0.attn.q_rope", "rope", "6"},
      {"lost overlap", 1, "layers.1.attn.indexer.compressor.pool", "compress_pool", "12"},
      {"zeros before", 0, "layers.1.attn.compressor.pool", "compress_pool", "13"},
      {"ape twice", 2, "layers.2.attn.compressor.pool", "compress_pool", "20"},
      {"no ape", 3, "layers.3.attn.compressor.pool", "compress_pool", "20"},
      {"entry late", 1, "layers.3.attn.indexer.selected", "index_topk", "16"},
      {"no relu", 0, "layers.1.attn.indexer.selected", "index_topk", "23"},
      {"mscale", 1, "layers.1.attn.o", "sparse_attention", "7"},
      {"no sink", 2, "layers.2.attn.o", "sparse_attention", "33"},
      {"short window", 0, "layers.0.attn.o", "sparse_attention", "16"},
      {"no entries", 1, "layers.2.attn.o", "sparse_attention", "16"},
      {"selection ignored", 1, "layers.3.attn.o", "sparse_attention", "28"},
      {"norm of all heads", 1, "layers.1.attn.q_head_norm", "rms_norm", "35"},
      {"comb transposed", 2, "layers.1.hc_attn.comb", "hyper_connection_gates", "38"},
      {"comb used transposed", 5, "layers.2.hc_ffn.streams", "hyper_connection_expand", "38"},
      {"no factor 2", 4, "layers.2.hc_attn.post", "hyper_connection_gates", "39"},
      {"bf16 streams", 3, "layers.1.hc_ffn.streams", "hyper_connection_expand", "40"},
      {"shared not clamped", 1, "layers.1.ffn.shared_experts.h", "swiglu", "43"},
      {"routed not clamped", 3, "layers.3.ffn.experts.h", "swiglu", "43"},
      {"product clamped", 2, "layers.1.ffn.shared_experts.h", "swiglu", "44"},
      {"no bias", 2, "layers.3.ffn.chosen", "route", "46"},
      {"bias in weights", 0, "layers.1.ffn.weights", "route", "46"},
      {"no scaling factor", 2, "layers.2.ffn.weights", "route", "46"},
      {"no table", 0, "layers.0.ffn.chosen", "route", "47"},
  }));
  INFO(name << ", call " << call);
  const testing::mutation m{name, call};
  const auto dump = dump_model<conformance::mixed_model, numerics::bf16>(m, conformance::mixed_tokens());
  REQUIRE(m.made == 1);
  expect_divergence(checker().check(vector("mixed"), &vector("mixed").runs[0], dump), tensor, op, row);
}

TEST_CASE("known bugs: the released formats") {
  const auto [name, call, tensor, op, row] = GENERATE(values<bug>({
      {"no hadamard", 1, "layers.1.attn.indexer.q_hadamard", "hadamard", "22"},
      {"no hadamard", 0, "layers.1.attn.indexer.compressor.hadamard", "hadamard", "22"},
      {"all channels rounded", 0, "layers.0.attn.compressor.fp8", "round_trip", "35"},
      {"not rounded", 1, "layers.0.attn.kv_fp8", "round_trip", "35"},
      {"not rounded", 3, "layers.1.attn.indexer.compressor.fp4", "round_trip", "22"},
      {"nibbles swapped", 1, "layers.0.ffn.experts.w3", "grouped_linear", "50"},
      {"scale as number", 3, "layers.1.ffn.experts.w1", "grouped_linear", "51"},
      {"sink of bytes", 1, "layers.1.attn.o", "sparse_attention", "32"},
  }));
  INFO(name << ", call " << call);
  const testing::mutation m{name, call};
  const auto ids = conformance::draw_tokens(conformance::released_seed, conformance::released_length,
                                            conformance::released_model.vocab_size);
  const auto dump = dump_model<conformance::released_model, numerics::v4_released>(m, ids);
  REQUIRE(m.made == 1);
  const auto r = checker().check(vector("released"), &vector("released").runs[0], dump);
  if (std::string(name) == "sink of bytes") {  // no mistake that is told from others: the op's rows
    REQUIRE(r.first);
    CHECK(r.first->tensor == tensor);
    CHECK(std::find(r.first->rows.begin(), r.first->rows.end(), row) != r.first->rows.end());
  } else {
    expect_divergence(r, tensor, op, row);
  }
}

TEST_CASE("known bugs: single ops") {
  struct op_bug {
    const char *vector, *name, *tensor, *op, *row;
  };
  const op_bug b = GENERATE(values<op_bug>({
      {"rope.pairs", "half-split", "turned.y", "rope", "1"},
      {"rope.pairs", "first channels", "turned.y", "rope", "2"},
      {"rope.inverse", "inverse ignored", "turned_back.y", "rope", "4"},
      {"rope.entries", "entry index", "first.y", "rope", "10"},
      {"compress_pool.csa", "zeros before", "entries.y", "compress_pool", "13"},
      {"compress_pool.continued", "lost overlap", "entries.y", "compress_pool", "12"},
      {"compress_pool.ape", "ape twice", "entries.y", "compress_pool", "20"},
      {"hadamard.rows", "no hadamard", "transformed.y", "hadamard", "22"},
      {"index_topk.hand", "no relu", "index.selected", "index_topk", "23"},
      {"index_topk.ties", "reversed ties", "index.selected", "index_topk", "24"},
      {"sparse_attention.csa", "no sink", "attention.o", "sparse_attention", "33"},
      {"sparse_attention.scale", "mscale", "attention.o", "sparse_attention", "7"},
      {"hyper_connection_gates.once", "one pass more", "gates.comb", "hyper_connection_gates", "39"},
      {"hyper_connection_gates.once", "no epsilon", "gates.pre", "hyper_connection_gates", "39"},
      {"hyper_connection_gates.head", "no epsilon", "gates.pre", "hyper_connection_gates", "39"},
      {"hyper_connection_expand.constants", "comb used transposed", "expanded.y", "hyper_connection_expand",
       "38"},
      {"swiglu.routed", "product clamped", "activated.h", "swiglu", "44"},
      {"swiglu.shared", "no clamp", "activated.h", "swiglu", "43"},
      {"route.bias", "bias in weights", "routed.weights", "route", "46"},
      {"route.hash", "no table", "routed.experts", "route", "47"},
      {"route.near_tie", "router in bf16", "gate.y", "linear", "48"},
      {"mxfp4.bytes", "nibbles swapped", "decoded.x", "dequantise", "50"},
      {"mxfp4.scales", "scale as number", "decoded.x", "dequantise", "51"},
      {"e4m3.bytes", "fnuz", "decoded.x", "dequantise", "51b"},
      {"e4m3.kv", "all channels rounded", "stored.y", "round_trip", "35"},
  }));
  INFO(b.vector << ": " << b.name);
  const testing::mutation m{b.name};
  auto dump = run_op(testing::mutant{&m}, b.vector);
  REQUIRE(m.made > 0);
  // What the recorder computes itself would show the mistake earlier than the op does.
  dump.erase("index.scores");
  const auto r = checker().check(vector(b.vector), nullptr, dump);
  REQUIRE(r.first);
  CHECK(r.first->tensor == b.tensor);
  CHECK(r.first->op == b.op);
  INFO(r.first->mistake);
  CHECK_FALSE(r.first->mistake.empty());
  CHECK(std::find(r.first->rows.begin(), r.first->rows.end(), b.row) != r.first->rows.end());
}

TEST_CASE("known bugs: only in decode, seen through streams and logits alone") {
  const testing::mutation m{"lost overlap in decode"};
  const auto ids = conformance::mixed_tokens();
  parameter_store<conformance::mixed_model, double, numerics::bf16> weights;
  conformance::suite_weights<conformance::mixed_model, double, numerics::bf16>(exec::reference{}, weights);
  const auto dump = [&](const conformance::model_run& run) {
    return conformance::run_in_chunks<conformance::mixed_model, double, numerics::bf16>(
        testing::mutant{&m}, weights, ids, run.chunks);
  };
  const auto& v = vector("mixed");
  CHECK_FALSE(checker().check(v, &v.runs[0], dump(v.runs[0])).first);
  REQUIRE(v.runs[1].name == "decode");
  const auto r = checker().check(v, &v.runs[1], dump(v.runs[1]));
  REQUIRE(r.first);
  CHECK(r.first->layer == "layers.1");
  CHECK(r.first->tensor == "layers.1.hc_ffn.streams");
  INFO(r.first->place);
  CHECK(std::stoi(r.first->place.substr(6)) >= 11);  // the first token after the prefill completes entry 2
  const auto& unseen = r.first->unseen;
  CHECK(std::find(unseen.begin(), unseen.end(), "layers.1.attn.compressor.pool") != unseen.end());
  CHECK(std::none_of(unseen.begin(), unseen.end(),
                     [](const std::string& name) { return name.starts_with("layers.0."); }));
  CHECK(std::find(r.first->rows.begin(), r.first->rows.end(), "12") != r.first->rows.end());
}

TEST_CASE("known bugs: packed documents see each other, labels are shifted twice, a draft is not verified") {
  const auto& v = vector("mixed");
  parameter_store<conformance::mixed_model, double, numerics::bf16> weights;
  conformance::suite_weights<conformance::mixed_model, double, numerics::bf16>(exec::reference{}, weights);
  auto ids = conformance::mixed_tokens();
  const auto others = conformance::packed_tokens();
  const auto first = [&](const char* run, const conformance::tensor_map& dump) {
    const auto at = std::find_if(v.runs.begin(), v.runs.end(), [&](const auto& r) { return r.name == run; });
    auto r = checker().check(v, &*at, dump);
    REQUIRE(r.first);
    return *r.first;
  };
  const auto has = [](const conformance::divergence& d, const char* row) {
    return std::find(d.rows.begin(), d.rows.end(), row) != d.rows.end();
  };

  auto joined = ids;
  joined.insert(joined.end(), others.begin(), others.end());
  const auto leak =
      first("packed", {{"logits", conformance::run_packed<conformance::mixed_model, double, numerics::bf16>(
                                      exec::reference{}, weights, {joined})}});
  CHECK(leak.tensor == "packed.logits");
  CHECK(leak.place.starts_with("token " + std::to_string(conformance::mixed_length) + ", "));
  CHECK(has(leak, "15"));

  const auto logits = conformance::run_packed<conformance::mixed_model, double, numerics::bf16>(
      exec::reference{}, weights, {ids});
  conformance::tensor shifted = logits;
  shifted.shape[0] -= 1;
  shifted.values.resize(std::size_t(shifted.shape[0] * conformance::mixed_model.vocab_size));
  ids.erase(ids.begin());
  const auto labels = first(
      "whole", {{"logits", logits},
                {"loss", {conformance::dtype::f32, {1}, {conformance::next_token_loss(shifted, ids)}}}});
  CHECK(labels.tensor == "loss");
  CHECK(labels.mistake == "labels are shifted twice");
  CHECK(has(labels, "65"));

  ids = conformance::mixed_tokens();
  auto text = conformance::run_greedy<conformance::mixed_model, double, numerics::bf16>(
      exec::reference{}, weights, {ids.begin(), ids.begin() + conformance::greedy_prompt},
      conformance::greedy_length);
  text.tokens[5] = 0;
  const auto draft = first(
      "whole",
      {{"greedy",
        {conformance::dtype::i32, {conformance::greedy_length}, {text.tokens.begin(), text.tokens.end()}}}});
  CHECK(draft.place == "token 5");
  CHECK(has(draft, "58"));
}

TEST_CASE("known bugs: training") {
  const auto rows_after = [&](const std::string& name, const auto& change) {
    auto dump = run_op(exec::reference{}, name);
    CHECK_FALSE(checker().check(vector(name), nullptr, dump).first);
    change(dump);
    const auto r = checker().check(vector(name), nullptr, dump);
    REQUIRE(r.first);
    INFO(r.first->tensor << ": " << r.first->mistake);
    CHECK_FALSE(r.first->mistake.empty());
    return r.first->rows;
  };
  CHECK(rows_after("muon.wide", [](auto& t) {  // update = weight - (1 - 0.05) weight
          for (std::int64_t i = 0; i < t["weight"].size(); ++i) {
            const double kept = 0.95 * t["weight"][i];
            t["stepped.weight"][i] = kept + (t["stepped.weight"][i] - kept) / 0.18;
          }
        }) == std::vector<std::string>{"64"});
  CHECK(rows_after("hyper_connection_expand.gradient", [](auto& t) {
          const auto comb = t["back.dcomb"];
          for (std::int64_t i = 0; i < comb.size(); ++i)
            t["back.dcomb"][i] = comb[i / 16 * 16 + i % 4 * 4 + i / 4 % 4];
        }) == std::vector<std::string>{"38"});
  const auto all_zero = rows_after("indexer_loss.sparse", [](auto& t) {
    for (double& x : t["back.dindex_q"].values) x = 0;
  });
  CHECK(std::find(all_zero.begin(), all_zero.end(), "60") != all_zero.end());
}

TEST_CASE("known bugs: gradients of a whole model") {
  const auto& v = vector("trained");
  parameter_store<conformance::trained_model, double> weights;
  conformance::trained_weights(weights);
  const auto run = [&](const auto& policy) {
    recorder to;
    conformance::record_training(policy, to, weights);
    return std::move(to.tensors);
  };
  const auto first = [&](const conformance::tensor_map& dump) {
    const auto r = checker().check(v, &v.runs[0], dump);
    REQUIRE(r.first);
    return *r.first;
  };
  auto right = run(exec::reference{});
  CHECK_FALSE(checker().check(v, &v.runs[0], right).first);

  // The gradient of the last turn of attention outputs is not turned: losses are right.
  const testing::mutation m{"gradient not turned"};
  const auto turned = first(run(testing::mutant{&m}));
  CHECK(turned.tensor.starts_with("grad.mtp.0.attn."));
  CHECK(turned.layer == "mtp.0");
  CHECK(std::find(turned.rows.begin(), turned.rows.end(), "5") != turned.rows.end());

  // The indexers are not trained.
  auto untrained = right;
  for (auto& [name, t] : untrained)
    if (name.find("indexer.") != std::string::npos)
      for (double& x : t.values) x = 0;
  const auto zero = first(untrained);
  CHECK(zero.tensor == "grad.layers.1.attn.indexer.compressor.norm.weight");
  CHECK(zero.layer == "layers.1");
  CHECK(zero.mistake == "everything is 0");
  CHECK(zero.rows == std::vector<std::string>{"60", "61", "62"});
}
