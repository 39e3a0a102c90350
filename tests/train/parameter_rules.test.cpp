// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/train/parameter_rules.hpp>

#include <cstdint>
#include <string>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
parameter_rule rule(const std::string& name, std::vector<std::int64_t> shape) {
  return rule_of(v4_flash, {name, std::move(shape)});
}
using rows = std::vector<std::int64_t>;

template <model_config C>
struct total {
  std::int64_t parameters = 0, muon = 0, adamw = 0, bias = 0, tables = 0;
  total() {
    for (const auto& row : parameter_rules<C>()) {
      std::int64_t n = row.count;
      for (std::int64_t e : row.shape) n *= e;
      parameters += row.count;
      (row.rule.rule == update_rule::muon          ? muon
       : row.rule.rule == update_rule::adamw       ? adamw
       : row.rule.rule == update_rule::router_bias ? bias
                                                   : tables) += n;
      if (row.rule.rule == update_rule::muon) {  // the logical matrices cover the stored one
        std::int64_t all = 0, stored = 1;
        for (std::int64_t r : row.rule.rows) all += r;
        for (std::size_t axis = 0; axis + 1 < row.shape.size(); ++axis) stored *= row.shape[axis];
        CHECK(all == stored);
        CHECK(row.rule.decay);
      } else {
        CHECK(row.rule.rows.empty());
      }
    }
  }
};
}  // namespace

TEST_CASE("parameter_rules: every parameter of every preset has one") {
  const auto check = [](const auto& t, const model_config& c) {
    CHECK(t.muon + t.adamw + t.bias == count_parameters(c).with_mtp());
    CHECK(t.tables == std::int64_t{c.vocab_size} * c.moe.num_experts_per_tok * c.moe.num_hash_layers);
    CHECK(t.bias == std::int64_t{c.moe.n_routed_experts} *
                        (c.num_hidden_layers() - c.moe.num_hash_layers + c.num_nextn_predict_layers));
  };
  check(total<v4_nano>(), v4_nano);
  check(total<v4_bench>(), v4_bench);
  check(total<v4_flash>(), v4_flash);
  check(total<v4_pro>(), v4_pro);
}

TEST_CASE("parameter_rules: AdamW takes the embedding, the head, vectors and tables") {
  for (const char* name : {"embed.weight", "head.weight"}) {
    const auto r = rule(name, {129280, 4096});
    CHECK(r.rule == update_rule::adamw);
    CHECK(r.decay);
  }
  for (const char* name :
       {"norm.weight", "layers.0.attn_norm.weight", "layers.42.ffn_norm.weight",
        "layers.7.attn.q_norm.weight", "layers.7.attn.kv_norm.weight", "layers.2.attn.compressor.norm.weight",
        "mtp.0.enorm.weight", "mtp.0.hnorm.weight", "mtp.0.norm.weight", "layers.1.hc_attn_base",
        "layers.1.hc_ffn_scale", "hc_head_base", "mtp.0.hc_head_scale", "layers.3.attn.attn_sink",
        "layers.3.attn.compressor.ape", "layers.2.attn.indexer.compressor.ape"}) {
    INFO(name);
    const auto r = rule(name, {64});
    CHECK(r.rule == update_rule::adamw);
    CHECK_FALSE(r.decay);
  }
  CHECK(rule("layers.5.ffn.gate.bias", {256}).rule == update_rule::router_bias);
  CHECK(rule("layers.1.ffn.gate.tid2eid", {129280, 6}).rule == update_rule::frozen);
}

TEST_CASE("parameter_rules: Muon takes logical matrices") {
  // Whole matrices, not one per head.
  CHECK(rule("layers.0.attn.wq_b.weight", {32768, 1024}).rows == rows{32768});
  CHECK(rule("layers.0.ffn.gate.weight", {256, 4096}).rows == rows{256});
  CHECK(rule("mtp.0.e_proj.weight", {4096, 4096}).rows == rows{4096});
  // One per expert and per group.
  CHECK(rule("layers.3.ffn.experts.*.w1.weight", {256, 2048, 4096}).rows == rows(256, 2048));
  CHECK(rule("layers.3.ffn.experts.*.w2.weight", {256, 4096, 2048}).rows == rows(256, 4096));
  CHECK(rule("layers.0.attn.wo_a.weight", {8, 1024, 4096}).rows == rows(8, 1024));
  // The two halves of an overlapping compressor; HCA's is one.
  CHECK(rule("layers.2.attn.compressor.wkv.weight", {1024, 4096}).rows == rows{512, 512});
  CHECK(rule("layers.2.attn.compressor.wgate.weight", {1024, 4096}).rows == rows{512, 512});
  CHECK(rule("layers.3.attn.compressor.wkv.weight", {512, 4096}).rows == rows{512});
  CHECK(rule("layers.2.attn.indexer.compressor.wkv.weight", {256, 4096}).rows == rows{128, 128});
  // The three segments of an mHC projection; the head's has the first only.
  CHECK(rule("layers.2.hc_attn_fn", {24, 16384}).rows == rows{4, 4, 16});
  CHECK(rule("hc_head_fn", {4, 16384}).rows == rows{4});
}

TEST_CASE("parameter_rules: an unknown parameter is named, not guessed") {
  for (const char* name : {"layers.0.attn.wnew.weight", "layers.0.attn.wq_a.weight.scale",
                           "layers.0.wq_a.weight", "embed.weights", "", "layers.x"})
    CHECK_THROWS_WITH(rule(name, {4, 4}),
                      contains("rule_of: parameter") && contains(std::string("found ") + name));
}

TEST_CASE("parameter_rules: the table as text") {
  const std::string text = parameter_rule_text<v4_flash>();
  const auto line = [&](const std::string& name) {
    const std::size_t begin = text.find("\n" + name + " ") + 1;
    REQUIRE(begin != 0);
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  CHECK_THAT(line("layers.*.ffn.experts.*.w1.weight"), contains("[256, 2048, 4096]") && contains(" 43 ") &&
                                                           contains("Muon, 256 matrices of 2048 rows"));
  CHECK_THAT(line("layers.*.hc_attn_fn"), contains("Muon, matrices of 4, 4, 16 rows"));
  CHECK_THAT(line("embed.weight"), contains("AdamW, with decay"));
  CHECK_THAT(line("layers.*.ffn.gate.bias"), contains(" 40 ") && contains("router bias"));
}
