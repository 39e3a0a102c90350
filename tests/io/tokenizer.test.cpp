// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back: by hand, against recorded encodings of another implementation, and with files and
// bytes that nobody should have to expect.
#include "support/catch.hpp"
#include <dsv4/io/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

using namespace dsv4;
using dsv4::io::streaming_decoder;
using dsv4::io::tokenizer;
using dsv4::testing::contains;
using nlohmann::json;
using ids = std::vector<std::int32_t>;

namespace {

const std::filesystem::path data = DSV4_TEST_DATA;

std::string read(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  REQUIRE(in);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A tokenizer.json of the 256 bytes (id: the byte) and whatever `more` tokens from id 256 on.
json small(const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  json t = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", json::object()}, {"merges", json::array()}}}};
  json& model = t["model"];
  for (int byte = 0; byte < 256; ++byte)
    model["vocab"][io::detail::byte_alphabet::symbol(static_cast<unsigned char>(byte))] = byte;
  for (const auto& [left, right] : merges) {
    if (!model["vocab"].contains(left + right)) model["vocab"][left + right] = model["vocab"].size();
    model["merges"].push_back({left, right});
  }
  return t;
}

json added(int id, const std::string& content, bool special = true, bool normalized = false) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

json split(const std::string& regex, const std::string& behavior = "Isolated") {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", behavior}, {"invert", false}};
}

/// Pieces are single tokens where every piece has been made one: tells where text was cut.
json with_splits(json t, std::vector<json> parts) {
  parts.push_back(t["pre_tokenizer"]);
  t["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", parts}};
  return t;
}

tokenizer parse(const json& t) { return tokenizer::parse(t.dump(), "tokenizer.json"); }

/// What parsing says about `t`; empty when it accepts.
std::string verdict(const json& t) {
  try {
    parse(t);
  } catch (const format_error& refusal) {
    return refusal.what();
  }
  return "";
}

bool says(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// The text of each token.
std::vector<std::string> cut(const tokenizer& t, std::string_view text) {
  std::vector<std::string> out;
  for (const std::int32_t id : t.encode(text)) out.emplace_back(t.bytes(id));
  return out;
}
using strings = std::vector<std::string>;

/// Runs of equal letters x and y are tokens up to length 16, so boundaries show.
tokenizer runs(const std::vector<json>& splits) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const char* letter : {"x", "y", "1"})
    for (std::string run = letter; run.size() < 16; run += run) merges.emplace_back(run, run);
  merges.insert(merges.end(), {{"x", "y"}, {"y", "x"}, {"1", "x"}, {"x", "1"}, {"Ġ", "x"}, {"x", "Ġ"}});
  return parse(with_splits(small(merges), splits));
}

std::string random_bytes(std::mt19937& random, std::size_t size) {
  std::string out;
  for (std::size_t i = 0; i < size; ++i) out += static_cast<char>(random() & 255U);
  return out;
}

std::string stream(const tokenizer& t, const ids& tokens) {
  streaming_decoder decoder(t);
  std::string out;
  for (const std::int32_t id : tokens) out += decoder.push(id);
  return out + decoder.finish();
}

std::string utf8(std::uint32_t code) {
  const auto last = [&](unsigned shift) { return static_cast<char>(0x80U | (code >> shift & 0x3FU)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0U | code >> 6U), last(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0U | code >> 12U), last(6), last(0)};
  return {static_cast<char>(0xF0U | code >> 18U), last(12), last(6), last(0)};
}

}  // namespace

TEST_CASE("recorded encodings") {
  const tokenizer t(data / "tokenizer_deepseek_style.json");
  CHECK(t.size() == 624);
  for (const json& sample : json::parse(read(data / "tokenizer_expected.json"))) {
    const auto text = sample["text"].get<std::string>();
    INFO(text);
    CHECK(t.encode(text) == sample["ids"].get<ids>());
    CHECK(t.decode(t.encode(text)) == text);
    CHECK(stream(t, t.encode(text)) == text);
  }
  CHECK(t.id("<｜begin▁of▁sentence｜>") == 0);
  CHECK(t.id("Ġthe").has_value());
  CHECK_FALSE(t.id(" the").has_value());
  CHECK(t.bytes(t.id("Ġthe").value()) == " the");
}

TEST_CASE("merges go by rank, then from the left") {
  // a b c: "bc" ranks before "ab".
  const tokenizer t = parse(small({{"b", "c"}, {"a", "b"}, {"a", "bc"}, {"x", "x"}, {"xx", "xx"}}));
  CHECK(t.size() == 261);
  CHECK(cut(t, "abc") == strings{"abc"});
  CHECK(cut(t, "ab") == strings{"ab"});
  CHECK(cut(t, "bcab") == strings{"bc", "ab"});
  CHECK(cut(t, "xxx") == strings{"xx", "x"});
  CHECK(cut(t, "xxxxxxx") == strings{"xxxx", "xx", "x"});
  CHECK(t.encode("").empty());
  CHECK(t.decode(ids{}).empty());
  json older = small({{"b", "c"}, {"a", "b"}});
  older["model"]["merges"] = {"b c", "a b"};
  CHECK(cut(parse(older), "abc") == strings{"a", "bc"});
}

TEST_CASE("ignore_merges takes whole pieces first") {
  json t = small({{"b", "c"}, {"a", "b"}});
  t["model"]["vocab"]["abc"] = 258;
  t["model"]["vocab"]["ĠÃ©"] = 259;
  CHECK(cut(parse(t), "abc") == strings{"a", "bc"});
  t["model"]["ignore_merges"] = true;
  CHECK(cut(parse(t), "abc") == strings{"abc"});
  CHECK(cut(parse(t), "abcb") == strings{"a", "bc", "b"});
  CHECK(cut(parse(t), " é") == strings{" é"});
}

TEST_CASE("added tokens are split off before anything else") {
  json t = with_splits(small({{"a", "b"}, {"<", "s"}}), {split("[a-z]+")});
  t["added_tokens"] = {added(300, "<s>"), added(301, "<s>x"), added(302, "b<", false, true),
                       added(303, "漢", false)};
  const tokenizer k = parse(t);
  CHECK(k.size() == 304);
  CHECK(k.encode("ab<s>ab") == ids{256, 300, 256});
  CHECK(k.encode("<s>xx<s>") == ids{301, 'x', 300});  // the longest of those that start there
  CHECK(k.encode("b<s>") == ids{'b', 300});           // normalized ones come after the others
  CHECK(k.encode("ab<b<s") == ids{'a', 302, 302, 's'});
  CHECK(k.encode("a漢漢\xE6\xBC") == ids{'a', 303, 303, 0xE6, 0xBC});
  CHECK(k.decode(ids{256, 300, 303}) == "ab<s>漢");
  CHECK(k.decode(ids{256, 300, 303}, true) == "ab漢");
  CHECK(k.is_special(300));
  CHECK_FALSE(k.is_special(303));
  CHECK(k.contains(300));
  CHECK_FALSE(k.contains(299));
  CHECK_THROWS_AS(k.decode(ids{299}), contract_error);
  CHECK_THROWS_AS(k.decode(ids{304}), contract_error);
  CHECK_THROWS_AS(k.decode(ids{-1}, true), contract_error);
  streaming_decoder quiet(k, true);
  CHECK(quiet.push(300).empty());
  CHECK(quiet.push(256) == "ab");
}

TEST_CASE("an added token decodes to its own text") {
  json t = small();
  t["added_tokens"] = json::array({added(256, "éé", false)});
  CHECK(parse(t).decode(ids{256}) == "éé");
  t["added_tokens"] = json::array({added(0xE9, "é", false)});  // byte E9 in the vocabulary
  CHECK(says(verdict(t), "added_tokens[0].content: expected no token that stands for other bytes"));
}

TEST_CASE("the post_processor's tokens stand around the text on demand") {
  json t = small();
  t["added_tokens"] = {added(256, "<s>"), added(257, "</s>")};
  const auto special = [](const char* id) { return json{{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto entry = [](const char* id, int token) {
    return json{{"id", id}, {"ids", json::array({token})}, {"tokens", json::array({id})}};
  };
  json around = {{"type", "TemplateProcessing"},
                 {"single", {special("<s>"), text, special("</s>")}},
                 {"pair", json::array()},
                 {"special_tokens", {{"<s>", entry("<s>", 256)}, {"</s>", entry("</s>", 257)}}}};
  t["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, around}}};
  CHECK(parse(t).encode("a", true) == ids{256, 'a', 257});
  CHECK(parse(t).encode("a") == ids{'a'});
  CHECK(parse(t).encode("", true) == ids{256, 257});
  around["single"] = json::array({special("<s>")});
  t["post_processor"] = around;
  CHECK(says(verdict(t), "post_processor.single: expected a template with the text in it"));
  around["single"] = {text, special("<x>")};
  t["post_processor"] = around;
  CHECK(says(verdict(t), "post_processor.special_tokens.<x>: expected an object"));
  around["single"] = {text, special("<s>")};
  around["special_tokens"]["<s>"]["ids"] = json::array({4000});
  t["post_processor"] = around;
  CHECK(says(verdict(t), "expected the id of a token, found 4000"));
}

TEST_CASE("what a split does with its matches") {
  const auto behaves = [](const char* behavior) { return runs({split("x", behavior)}); };
  CHECK(cut(behaves("Isolated"), "yyxxyy") == strings{"yy", "x", "x", "yy"});
  CHECK(cut(behaves("Removed"), "yyxxyy") == strings{"yy", "yy"});
  CHECK(cut(behaves("Contiguous"), "yyxxyy") == strings{"yy", "xx", "yy"});
  CHECK(cut(behaves("MergedWithPrevious"), "yxxy") == strings{"yx", "x", "y"});
  CHECK(cut(behaves("MergedWithNext"), "yxxy") == strings{"y", "x", "xy"});
  const json literal = {
      {"type", "Split"}, {"pattern", {{"String", "x1"}}}, {"behavior", "Isolated"}, {"invert", false}};
  CHECK(cut(runs({literal}), "xx1x") == strings{"x", "x1", "x"});
  const json digits = {{"type", "Digits"}, {"individual_digits", true}},
             together = {{"type", "Digits"}, {"individual_digits", false}};
  CHECK(cut(runs({digits}), "11x11") == strings{"1", "1", "x", "1", "1"});
  CHECK(cut(runs({together}), "11x11") == strings{"11", "x", "11"});
  CHECK(cut(runs({split(R"(\p{N}{1,3})")}), "1111") == strings{"11", "1", "1"});
  CHECK(cut(runs({split("x?")}), "yyxyy") == strings{"y", "y", "x", "y", "y"});  // empty matches cut as well
}

TEST_CASE("GPT-2's pieces") {
  json t = small({{"x", "'"}, {"'", "s"}, {"1", "x"}, {"Ġ", "x"}, {"Ġ", "Ġ"}, {"x", "Ġ"}, {"'s", "x"}});
  t["pre_tokenizer"].erase("use_regex");
  CHECK(cut(parse(t), "x's  x1x") == strings{"x", "'s", " ", " x", "1", "x"});
}

TEST_CASE("regular expressions mean what Oniguruma means, or are refused") {
  const auto pieces = [](const std::string& regex, std::string_view text) {
    json t = small({{"x", "Ġ"}, {"Ġ", "x"}, {"x", "x"}, {"á", "ł"}, {"áł", "İ"}, {"x", "áł"}, {"x", "Ċ"}});
    return cut(parse(with_splits(t, {split(regex)})), text);
  };
  CHECK(pieces(R"(\s)", "x x") == strings{"x", " ", "x"});
  CHECK(pieces(R"(\s|x)", "x\xE1\xA0\x8Ex") == strings{"x", "\xE1\xA0\x8E", "x"});
  CHECK(pieces(R"(x\S)", "xx x") == strings{"xx", " x"});
  CHECK(pieces(R"(x$)", "x\nxx") == strings{"x", "\n", "x", "x"});
  CHECK(pieces(R"(x[^\S ])", "x xx\n") == strings{"x ", "x", "x\n"});
  for (const char* bad : {"",
                          "(",
                          ")",
                          "[",
                          "[]",
                          "[^]",
                          "[a",
                          "a**",
                          "*",
                          "\\",
                          "\\w",
                          "\\b",
                          "\\h",
                          "\\R",
                          "\\X",
                          "\\K",
                          "\\C",
                          "\\1",
                          "\\k<a>",
                          "\\p",
                          "\\p{",
                          "\\p{L",
                          "\\p{Han}",
                          "\\p{Script=Han}",
                          "\\pL",
                          "\\p{}",
                          "\\p{L Lu}",
                          "[[:alpha:]]",
                          "[a[b]]",
                          "[a&&b]",
                          "[b-a]",
                          "[a-\\d]",
                          "[\\d-z]",
                          "[a--]",
                          "[a-b-c]",
                          "(?i)a",
                          "(?i:a)",
                          "(?<n>a)",
                          "(?P<n>a)",
                          "(?#a)",
                          "(*FAIL)",
                          "(*UTF)a",
                          "(?R)",
                          "a{2}+",
                          "a{2}?",
                          "a{,2}",
                          "a{",
                          "a{}",
                          "a{x}",
                          "a{2",
                          "a{3,2}",
                          "a{99999999999}",
                          "\\x{110000}",
                          "\\x{D800}",
                          "\\xE9",
                          "\\x",
                          "\\u12",
                          "(?<=a*)b",
                          "((((a{500}){500}){500}){500})",
                          "(?",
                          "(?<",
                          "\\Qa\\E",
                          "[\\b]",
                          "\\o{7}",
                          "\\N",
                          "\\cA",
                          "\\0"}) {
    INFO(bad);
    CHECK_THROWS_AS(parse(with_splits(small(), {split(bad)})), format_error);
  }
  CHECK_THROWS_AS(parse(with_splits(small(), {split(std::string(5000, 'a'))})), format_error);
  CHECK_THROWS_AS(parse(with_splits(small(), {split(std::string(2000, '(') + std::string(2000, ')'))})),
                  format_error);
  CHECK_THROWS_AS(parse(with_splits(small(), std::vector<json>(65, split("a")))), format_error);
  CHECK(
      says(verdict(with_splits(small(), {split("\\p{Greek}")})),
           "pre_tokenizer.pretokenizers[0].pattern.Regex: expected a regular expression that is supported"));
}

TEST_CASE("a pattern that takes forever is an exception") {
  const tokenizer t = parse(with_splits(small(), {split("(x+x+)+[yz]")}));
  CHECK_THROWS_WITH(t.encode(std::string(60, 'x')), contains("matching a regular expression"));
}

TEST_CASE("any bytes come back") {
  const tokenizer t(data / "tokenizer_deepseek_style.json");
  std::mt19937 random(1);
  const std::string english = "The river\n\n  12345 <think> ";
  for (int round = 0; round < 2000; ++round) {
    std::string text = random_bytes(random, random() % 40);
    if (round % 2) text = english.substr(random() % english.size()) + text + "漢字かな😀<｜User｜>" + text;
    if (round % 4 == 3) text.resize(text.size() - random() % text.size() / 2);
    const ids tokens = t.encode(text);
    CHECK(t.decode(tokens) == text);
    CHECK(stream(t, tokens) == text);
  }
  // Every pair of bytes, and text right beside what is not text.
  for (unsigned a = 0; a < 256; ++a)
    for (unsigned b = 0; b < 256; ++b) {
      const std::string text = {'a', static_cast<char>(a), static_cast<char>(b), ' ', '1'};
      if (t.decode(t.encode(text)) != text) FAIL(a << ' ' << b);
    }
  CHECK(cut(t, "the\xFFthe") == [&] {
    strings whole = cut(t, "the");
    whole.emplace_back("\xFF");
    const strings again = cut(t, "the");
    whole.insert(whole.end(), again.begin(), again.end());
    return whole;
  }());
}

TEST_CASE("bytes that a vocabulary may leave out") {
  json t = small();
  for (int byte : {0xC0, 0xC1, 0xF5, 0xFF})
    t["model"]["vocab"].erase(io::detail::byte_alphabet::symbol(static_cast<unsigned char>(byte)));
  const tokenizer k = parse(t);
  CHECK(k.decode(k.encode("é\xF6")) == "é\xF6");
  CHECK_THROWS_WITH(k.encode("a\xFF"), contains("byte 255"));
  t["model"]["vocab"].erase("Ġ");
  CHECK(
      says(verdict(t), "model.vocab: expected a token for every byte of UTF-8, found none for byte 32 (Ġ)"));
}

TEST_CASE("a stream never shows half a character") {
  const tokenizer t = parse(small());
  // Every 4-byte character, and one in 7 of the others: nothing before its last byte, then all of it.
  for (std::uint32_t code = 0x80; code < 0x110000; code += code < 0x10000 ? 7 : 1) {
    if (code >= 0xD800 && code < 0xE000) continue;
    const std::string text = utf8(code);
    streaming_decoder decoder(t);
    bool good = true;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const std::string shown = decoder.push(static_cast<unsigned char>(text[i]));
      good = good && shown == (i + 1 == text.size() ? text : "");
    }
    if (!good || !decoder.finish().empty()) FAIL(code);
  }
  // A beginning that comes to nothing is shown as soon as that is certain.
  for (const std::string_view text : {"😀", "漢", "é"})
    for (std::size_t cut_at = 1; cut_at < text.size(); ++cut_at) {
      streaming_decoder decoder(t);
      for (const char c : text.substr(0, cut_at)) CHECK(decoder.push(static_cast<unsigned char>(c)).empty());
      CHECK(decoder.push('a') == std::string(text.substr(0, cut_at)) + "a");
      for (const char c : text.substr(0, cut_at)) CHECK(decoder.push(static_cast<unsigned char>(c)).empty());
      CHECK(decoder.finish() == text.substr(0, cut_at));
      CHECK(decoder.finish().empty());
    }
  streaming_decoder decoder(t);
  CHECK(decoder.push(0xF0).empty());
  CHECK(decoder.push(0xC3) == "\xF0");
  CHECK(decoder.push(0xA9) == "é");
  CHECK(decoder.push(0xFF) == "\xFF");
  CHECK(decoder.push(0xE0).empty());
  CHECK(decoder.push(0x80) == "\xE0\x80");  // overlong
  CHECK(decoder.push(0xED).empty());
  CHECK(decoder.push(0xA0) == "\xED\xA0");  // a surrogate
  CHECK_THROWS_AS(decoder.push(256), contract_error);
}

TEST_CASE("long runs are not quadratic") {
  const tokenizer t(data / "tokenizer_deepseek_style.json");
  const tokenizer merging = parse(small({{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}}));
  const auto start = std::chrono::steady_clock::now();
  for (const char* unit : {"a", " ", "\n", "漢", "!", "1", "<", "é", "\xFF"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    CHECK(t.decode(t.encode(text)) == text);
    CHECK(merging.decode(merging.encode(text)) == text);
  }
  // A quadratic merge alone would take 10^12 steps.
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
}

TEST_CASE("threads may share a tokenizer") {
  const tokenizer t(data / "tokenizer_deepseek_style.json");
  const std::string text = read(data / "tokenizer_expected.json");
  const ids alone = t.encode(text);
  std::vector<ids> found(4);
  std::vector<std::thread> threads;
  for (ids& mine : found) threads.emplace_back([&] { mine = t.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const ids& mine : found) CHECK(mine == alone);
}

TEST_CASE("what is not supported is refused by name") {
  const json good = json::parse(read(data / "tokenizer_deepseek_style.json"));
  REQUIRE(verdict(good).empty());
  struct change {
    const char *path, *value, *message;
  };
  const change changes[] = {
      {"/model/type", R"("Unigram")", R"(model.type: expected "BPE", found "Unigram")"},
      {"/model/type", "null", "model.type: expected a string"},
      {"/model/unk_token", R"("<unk>")", "model.unk_token: expected null"},
      {"/model/byte_fallback", "true", "model.byte_fallback: expected false"},
      {"/model/dropout", "0.1", "model.dropout: expected 0.0"},
      {"/model/continuing_subword_prefix", R"("##")", "model.continuing_subword_prefix"},
      {"/model/end_of_word_suffix", R"("</w>")", "model.end_of_word_suffix"},
      {"/model/ignore_merges", "1", "model.ignore_merges: expected true or false"},
      {"/model/extra", "1", "model: expected only keys that are supported, found 'extra'"},
      {"/model/vocab", "[]", "model.vocab: expected an object"},
      {"/model/merges", "{}", "model.merges: expected an array"},
      {"/model/merges", R"(["a b c"])", R"(model.merges[0]: expected "a b")"},
      {"/model/merges", R"(["ab"])", R"(model.merges[0]: expected "a b")"},
      {"/model/merges", R"([["a","b","c"]])", R"(model.merges[0]: expected "a b")"},
      {"/model/merges", "[3]", R"(model.merges[0]: expected "a b")"},
      {"/model/merges", R"([["a","nowhere"]])", "expected tokens of the vocabulary, found 'nowhere'"},
      {"/model/merges", R"([["a","Č"]])", "expected tokens of the vocabulary, found 'aČ'"},
      {"/model/merges", R"(["Ġ t","Ġ t"])", "model.merges[1]: expected each merge once"},
      {"/model/vocab/a", "-1", "model.vocab['a']: expected an id from 0"},
      {"/model/vocab/a", "1.5", "model.vocab['a']: expected an id from 0"},
      {"/model/vocab/a", R"("7")", "model.vocab['a']: expected an id from 0"},
      {"/model/vocab/a", "70", "expected an id for each token"},
      {"/model/vocab/a", "5000", "expected an id below"},
      {"/model/vocab/a", "2147483646", "expected an id below"},
      {"/model/vocab/a", "2147483647", "model.vocab['a']: expected an id from 0"},
      {"/model/vocab/a", "18446744073709551615", "model.vocab['a']: expected an id from 0"},
      {"/model/vocab/", "7", "expected no empty token"},
      {"/normalizer", R"({"type":"NFC"})",
       R"(normalizer.type: expected null or an empty Sequence, found "NFC")"},
      {"/normalizer/normalizers", R"([{"type":"NFC"}])", "normalizer.normalizers: expected []"},
      {"/normalizer", "3", "normalizer: expected an object"},
      {"/pre_tokenizer", "null", "pre_tokenizer: expected ByteLevel, or a Sequence"},
      {"/pre_tokenizer", R"({"type":"Whitespace"})",
       R"(pre_tokenizer.type: expected ByteLevel, Digits, Split or Sequence, found "Whitespace")"},
      {"/pre_tokenizer/pretokenizers", "[]", "pre_tokenizer: expected ByteLevel, or a Sequence"},
      {"/pre_tokenizer/pretokenizers/0", "null", "pre_tokenizer.pretokenizers[0]: expected an object"},
      {"/pre_tokenizer/pretokenizers/0", R"({"type":"ByteLevel","add_prefix_space":false})",
       "pretokenizers[1].type: expected nothing after ByteLevel"},
      {"/pre_tokenizer/pretokenizers/0/invert", "true", "pretokenizers[0].invert: expected false"},
      {"/pre_tokenizer/pretokenizers/0/behavior", R"("Other")",
       "pretokenizers[0].behavior: expected a behavior of Split"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"String":""})",
       "pattern: expected a pattern that is not empty"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "{}", "pattern: expected a String or a Regex"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex":4})", "pattern.Regex: expected a string"},
      {"/pre_tokenizer/pretokenizers/0/extra", "4", "found 'extra'"},
      {"/pre_tokenizer/pretokenizers/3/add_prefix_space", "true",
       "pretokenizers[3].add_prefix_space: expected false"},
      {"/pre_tokenizer/pretokenizers/3/use_regex", R"("no")",
       "pretokenizers[3].use_regex: expected true or false"},
      {"/post_processor", R"({"type":"BertProcessing"})",
       "post_processor.type: expected ByteLevel, TemplateProcessing or Sequence"},
      {"/post_processor", "1", "post_processor: expected an object"},
      {"/decoder", "null", "decoder: expected a ByteLevel decoder"},
      {"/decoder", R"({"type":"Fuse"})", "decoder: expected a ByteLevel decoder"},
      {"/added_tokens", "{}", "added_tokens: expected an array"},
      {"/added_tokens/0", "0", "added_tokens[0]: expected an object"},
      {"/added_tokens/0/lstrip", "true", "added_tokens[0].lstrip: expected false"},
      {"/added_tokens/0/rstrip", "true", "added_tokens[0].rstrip: expected false"},
      {"/added_tokens/0/single_word", "true", "added_tokens[0].single_word: expected false"},
      {"/added_tokens/0/content", R"("")", "added_tokens[0].content: expected a text"},
      {"/added_tokens/0/content", R"("other")", "added_tokens[0].id: expected an id for each token"},
      {"/added_tokens/0/id", "5", "added_tokens[0].id: expected the id 0 that the vocabulary has"},
      {"/added_tokens/0/id", "-5", "added_tokens[0].id: expected an id from 0"},
      {"/added_tokens/3/id", "4000000000", "added_tokens[3].id: expected an id from 0"},
      {"/added_tokens/3/id", "40000", "added_tokens[3].id: expected an id below"},
      {"/added_tokens/3/id", "1", "added_tokens[3].id: expected an id for each token"},
      {"/added_tokens/4",
       R"({"id":620,"content":"<｜User｜>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true})",
       "added_tokens[4].content: expected each added token once"},
      {"/added_tokens/0/special", "null", "added_tokens[0].special: expected true or false"},
      {"/added_tokens/0/normalized", "0", "added_tokens[0].normalized: expected true or false"},
      {"/added_tokens/0/more", "0", "found 'more'"},
      {"/truncation", "{}", "truncation: expected null"},
      {"/padding", "{}", "padding: expected null"},
      {"/version", R"("2.0")", R"(version: expected "1.0")"},
      {"/more", "1", "tokenizer: expected only keys that are supported, found 'more'"},
  };
  for (const auto& [path, value, message] : changes) {
    json t = good;
    t[json::json_pointer(path)] = json::parse(value);
    INFO(path << " = " << value);
    CHECK_THROWS_WITH(parse(t), contains(message));
    CHECK_THROWS_AS(parse(t), format_error);
  }
  for (const char* key : {"version", "pre_tokenizer", "decoder", "model"}) {
    json t = good;
    t.erase(key);
    CHECK(says(verdict(t), std::string(key) + ": expected"));
  }
  for (const char* key : {"type", "vocab", "merges"}) {
    json t = good;
    t["model"].erase(key);
    CHECK(says(verdict(t), std::string("model.") + key + ": expected"));
  }
}

TEST_CASE("hostile files are format errors") {
  const std::string good = read(data / "tokenizer_deepseek_style.json"), deep(200'000, '[');
  const std::string nested = [] {
    std::string open, close;
    for (int i = 0; i < 100'000; ++i) {
      open += R"({"type":"Sequence","pretokenizers":[)";
      close += "]}";
    }
    return R"({"version":"1.0","pre_tokenizer":)" + open + close + "}";
  }();
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("7"),
        std::string("{}"), deep, nested, good + "x", good.substr(0, good.size() / 2),
        good + std::string(1, '\0'), std::string("{\"version\": \"\xff\"}"),
        R"({"version":"1.0",)" + good.substr(1), std::string("{\"model\": NaN}")})
    CHECK_THROWS_AS(tokenizer::parse(text, "tokenizer.json"), format_error);
  std::string twice = good;
  twice.replace(twice.find("\"vocab\":{") + 9, 0, "\"a\":67,");
  CHECK_THROWS_WITH(tokenizer::parse(twice, "tokenizer.json"), contains("duplicate key 'a'"));
  // Every prefix ends in an exception, none in a crash.
  for (std::size_t size = 0; size < good.size() - 2; size += 97)
    CHECK_THROWS_AS(tokenizer::parse(good.substr(0, size), "tokenizer.json"), format_error);
  CHECK_THROWS_AS(tokenizer(data / "absent.json"), io_error);
  CHECK_THROWS_AS(tokenizer(data / "short.safetensors"), format_error);
}

// See tokenizer_peer.py.
TEST_CASE("encode what a peer encodes", "[.][peer]") {
  const char* const folder = std::getenv("DSV4_TOKENIZER_PEER");
  REQUIRE(folder != nullptr);
  const tokenizer t(std::filesystem::path(folder) / "tokenizer.json");
  const std::string in = read(std::filesystem::path(folder) / "texts.bin");
  std::string out;
  const auto number = [&](std::size_t at) {
    std::uint32_t value = 0;
    std::memcpy(&value, in.data() + at, sizeof(value));
    return value;
  };
  const auto append = [&](const void* from, std::size_t size) {
    out.append(static_cast<const char*>(from), size);
  };
  for (std::size_t at = 0; at < in.size();) {
    const std::uint32_t flags = number(at), length = number(at + 4);
    const ids tokens = t.encode(std::string_view(in).substr(at + 8, length), flags != 0);
    const std::string text = t.decode(tokens);
    const auto count = static_cast<std::uint32_t>(tokens.size()),
               size = static_cast<std::uint32_t>(text.size());
    append(&count, sizeof(count));
    append(tokens.data(), tokens.size() * sizeof(std::int32_t));
    append(&size, sizeof(size));
    out += text;
    at += 8 + length;
  }
  std::ofstream(std::filesystem::path(folder) / "tokens.bin", std::ios::binary) << out;
}
