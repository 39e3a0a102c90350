// SPDX-License-Identifier: Apache-2.0
// The checker's rules on a suite of two ops that is written by hand: what counts as wrong, and what does not.
#include "../../examples/conformance/checker.hpp"

#include "../../examples/conformance/make.hpp"
#include "support/catch.hpp"

#include <filesystem>
#include <string>
#include <unistd.h>

using namespace conformance;

namespace {

tensor reals(std::vector<std::int64_t> shape, std::vector<double> values) {
  return {dtype::f32, std::move(shape), std::move(values)};
}
tensor integers(std::vector<std::int64_t> shape, std::vector<double> values) {
  return {dtype::i32, std::move(shape), std::move(values)};
}

/// A folder that goes when the test does.
struct folder {
  fs::path path = fs::temp_directory_path() / ("dsv4_checker_" + std::to_string(getpid()));
  folder() { fs::create_directories(path); }
  ~folder() { fs::remove_all(path); }
};

/// logits = x weight (2 tokens, 3 experts), then two experts for each token. The second token's choice is
/// close.
test_vector routing(bool ties = false) {
  test_vector v{"routing", "", "ops/routing.safetensors", {"46"}, ties, {}, {}, {}};
  v.nodes.push_back({"linear", {{"x", "x"}, {"weight", "w"}}, {{"y", "logits"}}, json::object()});
  v.nodes.push_back({"route",
                     {{"logits", "logits"}, {"bias", "bias"}},
                     {{"experts", "chosen"}, {"weights", "weights"}},
                     {{"factor", 1.0}, {"k", 2}}});
  const std::array<double, 3> usual{1e-6, 1e-4, 1e-2};
  v.expected = {{"logits", {"token expert", comparison::scaled, 2, usual}},
                {"chosen", {"token slot", comparison::choice, 0, {0, 0, 0}}},
                {"weights", {"token slot", comparison::slots, 0.75, {1e-6, 1e-4, NAN}}}};
  return v;
}

checker made(const folder& at, const test_vector& v, precision p = precision::f32) {
  write_tensors(at.path / v.file, {{"x", reals({2, 1}, {1, 1})},
                                   {"w", reals({3, 1}, {2, 1, 0})},
                                   {"bias", reals({3}, {0, 0, 0})},
                                   {"logits", reals({2, 3}, {2, 1, 0, 2, 1, 0.9999})},
                                   {"chosen", integers({2, 2}, {0, 1, 0, 1})},
                                   {"weights", reals({2, 2}, {0.75, 0.25, 0.625, 0.375})}});
  suite s;
  s.vectors.push_back(v);
  s.refuse.push_back({"refuse/a.safetensors", "it lies", {"57"}});
  write_text(at.path / "manifest.json", manifest_text(s));
  return checker(at.path, p);
}

const tensor right_logits = reals({2, 3}, {2, 1, 0, 2, 1, 0.9999});

}  // namespace

TEST_CASE("checker: the slots of a choice may come in any order, their weights with them") {
  const folder at;
  const auto v = routing();
  const auto c = made(at, v);
  const tensor_map dump{{"logits", right_logits},
                        {"chosen", integers({2, 2}, {1, 0, 0, 1})},
                        {"weights", reals({2, 2}, {0.25, 0.75, 0.625, 0.375})}};
  const auto r = c.check(v, nullptr, dump);
  CHECK_FALSE(r.first);
  CHECK(r.compared == 3);
  // Without their choice the weights stand in the suite's order, and these do not.
  const auto alone = c.check(v, nullptr, {{"weights", dump.at("weights")}});
  REQUIRE(alone.first);
  CHECK(alone.first->tensor == "weights");
  CHECK(alone.first->place == "token 0, slot 0");
  CHECK(alone.missing == 2);
}

TEST_CASE("checker: a choice that rounding decides is no error, one that it does not is") {
  const folder at;
  const auto v = routing();
  const tensor_map near{{"logits", right_logits},
                        {"chosen", integers({2, 2}, {0, 1, 0, 2})},
                        {"weights", reals({2, 2}, {9, 9, 9, 9})}};
  const auto c = made(at, v);
  const auto r = c.check(v, nullptr, near);
  REQUIRE_FALSE(r.notes.empty());
  CHECK(r.notes[0].find("near tie") != std::string::npos);
  // A distance of 5e-5 in scores, where float64 is right to 1e-6.
  CHECK(made(at, v, precision::f64).check(v, nullptr, near).first->tensor == "chosen");
  // A vector about ties excuses none.
  const auto strict = routing(true);
  CHECK(made(at, strict).check(strict, nullptr, near).first->tensor == "chosen");
  // No tie at all: expert 2 for 0 in token 0; and a slot that is empty.
  for (const double wrong : {2.0, -1.0}) {
    const auto far = c.check(v, nullptr, {{"chosen", integers({2, 2}, {wrong, 1, 0, 1})}});
    REQUIRE(far.first);
    CHECK(far.first->place.starts_with("token 0"));
  }
}

TEST_CASE("checker: the first op that is wrong, and what may be wrong before it") {
  const folder at;
  const auto v = routing();
  const auto c = made(at, v);
  tensor off = right_logits;
  off[4] = 1.5;
  const auto r = c.check(v, nullptr, {{"logits", off}, {"chosen", integers({2, 2}, {2, 1, 0, 1})}});
  REQUIRE(r.first);
  CHECK(r.first->tensor == "logits");
  CHECK(r.first->op == "linear");
  CHECK(r.first->place == "token 1, expert 1");
  CHECK(r.first->expected == 1);
  CHECK(r.first->found == 1.5);
  CHECK(r.first->worst == Catch::Approx(0.25));
  CHECK(r.first->unseen.empty());
  const auto later = c.check(v, nullptr, {{"chosen", integers({2, 2}, {2, 1, 0, 1})}});
  REQUIRE(later.first);
  CHECK(later.first->unseen == std::vector<std::string>{"logits"});
}

TEST_CASE("checker: shapes, rows, names and values that are not numbers") {
  const folder at;
  const auto v = routing();
  const auto c = made(at, v);
  CHECK_FALSE(c.check(v, nullptr, {{"logits", reals({6}, right_logits.values)}}).first);  // cut otherwise
  const auto fewer = c.check(v, nullptr, {{"logits", reals({1, 3}, {2, 1, 0})}});
  CHECK_FALSE(fewer.first);
  REQUIRE(fewer.notes.size() == 1);
  CHECK(fewer.notes[0] == "logits: the first 1 of 2 rows");
  CHECK(c.check(v, nullptr, {{"logits", reals({2, 2}, {2, 1, 2, 1})}}).first->shape_problem ==
        "expected [2, 3], found [2, 2]");
  tensor nan = right_logits;
  nan[3] = NAN;
  const auto bad = c.check(v, nullptr, {{"logits", nan}});
  REQUIRE(bad.first);
  CHECK(bad.first->mistake == "a value is not finite");
  const auto unknown = c.check(v, nullptr, {{"logitz", right_logits}});
  REQUIRE(unknown.notes.size() == 1);
  CHECK(unknown.notes[0] == "\"logitz\" is no tensor of this vector");
  CHECK(unknown.missing == 3);
  // Not judged in bfloat16: the weights.
  const auto coarse =
      made(at, v, precision::bf16)
          .check(v, nullptr, {{"logits", right_logits}, {"weights", reals({2, 2}, {9, 9, 9, 9})}});
  CHECK_FALSE(coarse.first);
  CHECK(coarse.unjudged == 1);
}

TEST_CASE("checker: dumps in half precision and bfloat16 are read; what was refused is looked up") {
  const folder at;
  const auto v = routing();
  const auto c = made(at, v, precision::bf16);
  tensor bf = right_logits;
  bf.type = dtype::bf16;
  const fs::path dump = at.path / "dump";
  write_tensors(dump / v.file, {{"logits", bf}});
  const auto reports = c.check(dump);
  REQUIRE(reports.size() == 1);
  CHECK_FALSE(reports[0].first);
  for (const auto& [bits, value] :
       {std::pair{0x3C00, 1.0}, {0xC000, -2.0}, {0x0001, 0x1p-24}, {0x7BFF, 65504.0}, {0x8000, -0.0}})
    CHECK(half_to_double(static_cast<std::uint16_t>(bits)) == value);
  CHECK(c.accepted(dump).empty());  // it says nothing
  write_text(dump / "refused.json", "[]");
  REQUIRE(c.accepted(dump).size() == 1);
  CHECK(c.accepted(dump)[0].why == "it lies");
  write_text(dump / "refused.json", "[\"refuse/a.safetensors\"]");
  CHECK(c.accepted(dump).empty());
  write_text(dump / "refused.json", "{");
  CHECK_THROWS_AS(c.accepted(dump), dsv4::format_error);
}

TEST_CASE("suite: what is written is a multiple of 2^-24 of the largest, and never the middle between two") {
  tensor t = reals({3}, {1.5, 0x1p-24, 1 / 3.0});
  CHECK(round_for_file("t", comparison::scaled, t) == 1.5);
  CHECK(t[1] == 0);  // steps of 2^-23: half a step is exact, and ties go to the even one
  CHECK(t[2] == std::nearbyint(std::ldexp(1 / 3.0, 23)) * 0x1p-23);
  for (double x : t.values) CHECK(double(float(x)) == x);
  tensor close = reals({2}, {1.5, 0x1p-24 * (1 + 1e-9)});
  CHECK_THROWS_AS(round_for_file("t", comparison::scaled, close), dsv4::contract_error);
  tensor small = reals({2}, {1.5, 1e-9});
  round_for_file("t", comparison::relative, small);
  CHECK(small[1] == double(1e-9f));
}

TEST_CASE("suite: a manifest of another kind is refused") {
  const folder at;
  const auto v = routing();
  made(at, v);
  CHECK(read_suite(at.path).vectors[0].nodes[1].parameters.at("k") == 2);
  write_text(at.path / "manifest.json", "{\"version\":\"2.0.0\"}");
  CHECK_THROWS_AS(read_suite(at.path), dsv4::format_error);
  write_text(at.path / "manifest.json", "{");
  CHECK_THROWS_AS(read_suite(at.path), dsv4::format_error);
  fs::remove(at.path / "manifest.json");
  CHECK_THROWS_AS(read_suite(at.path), dsv4::io_error);
}
