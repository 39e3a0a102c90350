// SPDX-License-Identifier: Apache-2.0
/// Text to tokens and back, as a Hugging Face tokenizer.json describes it. Needs PCRE2 (8 bit, with Unicode).
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/byte_pair_encoding.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/io/pre_tokenizer.hpp>
#include <dsv4/io/tokenizer_json.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace dsv4::io {

/// A byte-level BPE tokenizer: encode and decode for the tokenizer.json of the DeepSeek-V3 and -V4 releases
/// and of others that are built from the same parts. Immutable, so threads may share it; move-only.
///
/// Supported: model BPE without unk_token, dropout, byte_fallback, prefixes and suffixes; no normalizer;
/// pre_tokenizer ByteLevel (without add_prefix_space), alone or as the end of a Sequence of Split and Digits;
/// post_processor null, ByteLevel, one TemplateProcessing, or a Sequence of these; decoder ByteLevel; added
/// tokens without single_word, lstrip and rstrip. All else is refused by name.
///
/// Against the `tokenizers` package (0.23.3):
/// - `\p{...}` depend on the Unicode version: PCRE2 10.42 has 14.0, the package 16.0, where 10301 code points
///   are assigned that 14.0 leaves open (U+1C89, U+31EF, ...) and one has moved (U+1171E, Mn to Mc). Only
///   text with these may be cut elsewhere and so become other tokens; it still decodes to itself.
/// - Bytes that are not UTF-8, which the package cannot take, are cut off from text, each run as one piece.
/// - An added token decodes to its own text, also where that looks like the byte alphabet ("é"; the package
///   gives byte 0xE9).
/// - decode gives bytes as they are; the package replaces what is not UTF-8 by U+FFFD, and skips unknown ids.
/// - As there, `add_special_tokens` adds nothing where the post_processor is ByteLevel: a token that a model
///   wants in front is then the caller's to add, and `id` knows it.
class tokenizer {
 public:
  /// Reads a tokenizer.json. Throws io_error, or format_error where it is not one that is supported.
  explicit tokenizer(const std::filesystem::path& file) {
    const mapped_file mapped(file, file_access::read);
    const auto bytes = mapped.bytes();
    const std::string name = file.string();
    build(name, detail::parse_tokenizer(name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  }

  /// The same from `json_text`, which messages call `name`.
  static tokenizer parse(std::string_view json_text, std::string_view name) {
    tokenizer made;
    made.build(name, detail::parse_tokenizer(name, json_text));
    return made;
  }

  /// The tokens of `text`, any bytes. `add_special_tokens`: with those that the file's post_processor puts
  /// around a text. Unless a Split of the file removes something, decode gives `text` back. Throws
  /// contract_error where the vocabulary lacks a byte that only text that is not UTF-8 has, and `error` where
  /// a regular expression of the file takes too much time or memory.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 bool add_special_tokens = false) const {
    std::vector<std::int32_t> out;
    workspace w;
    const auto token = [&](std::int32_t id) { out.push_back(id); };
    if (add_special_tokens) out = prefix_;
    // Tokens that are matched before normalization go first, also where others are longer.
    raw_.split(text, token, [&](std::string_view part) {
      normalized_.split(part, token, [&](std::string_view rest) { encode_text(rest, w, out); });
    });
    if (add_special_tokens) out.insert(out.end(), suffix_.begin(), suffix_.end());
    return out;
  }

  /// The bytes of `ids`. `skip_special`: without tokens that the file calls special. Throws contract_error on
  /// an id that is no token.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const {
    std::string out;
    for (const std::int32_t id : ids)
      if (const std::string_view bytes = this->bytes(id); !skip_special || !is_special(id)) out += bytes;
    return out;
  }

  /// One more than the highest id. A model's vocabulary may be larger: some are padded.
  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(tokens_.size()); }
  /// The id of a token as the file spells it: "Ġthe" for " the".
  [[nodiscard]] std::optional<std::int32_t> id(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }
  [[nodiscard]] bool contains(std::int64_t id) const noexcept {
    return id >= 0 && id < size() && tokens_[static_cast<std::size_t>(id)].known;
  }
  /// The bytes of one token, valid while the tokenizer lives; not always whole characters. Throws
  /// contract_error where `id` is no token.
  [[nodiscard]] std::string_view bytes(std::int32_t id) const { return at(id).bytes; }
  /// Whether the file calls `id` special. Throws contract_error where it is no token.
  [[nodiscard]] bool is_special(std::int32_t id) const { return at(id).special; }

 private:
  using place = detail::json_place;

  struct token {
    std::string bytes;
    bool known = false, special = false;
  };
  struct workspace {
    detail::match_workspace match;
    detail::byte_pair_encoding::workspace merge;
  };

  tokenizer() = default;

  const token& at(std::int32_t id) const {
    if (!contains(id))
      throw contract_error("tokenizer", "id", "that of a token, below " + std::to_string(size()),
                           std::to_string(id));
    return tokens_[static_cast<std::size_t>(id)];
  }

  void encode_text(std::string_view text, workspace& w, std::vector<std::int32_t>& out) const {
    while (!text.empty()) {
      std::size_t valid = 0, invalid = 0;
      for (int length; valid < text.size() && (length = detail::utf8_length(text.substr(valid))) > 0;)
        valid += static_cast<std::size_t>(length);
      for (const std::string_view piece : splits_.pieces(text.substr(0, valid), w.match))
        merges_.encode(piece, w.merge, out);
      text.remove_prefix(valid);
      while (invalid < text.size() && detail::utf8_length(text.substr(invalid)) <= 0) ++invalid;
      if (invalid > 0) merges_.encode(text.substr(0, invalid), w.merge, out);
      text.remove_prefix(invalid);
    }
  }

  void build(std::string_view file, const nlohmann::json& parsed) {
    const place root(file, "", parsed);
    root.check_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                     "post_processor", "decoder", "model"});
    root["version"].expect("1.0");
    root["truncation"].expect(nullptr);
    root["padding"].expect(nullptr);
    read_normalizer(root["normalizer"]);
    read_model(root["model"], root["added_tokens"]);
    splits_ = detail::read_pre_tokenizer(root["pre_tokenizer"]);
    bool template_seen = false;
    read_post_processor(root["post_processor"], template_seen);
    const place decoder = root["decoder"];
    if (decoder.is_null() || decoder.type() != "ByteLevel") decoder.refuse("a ByteLevel decoder");
    detail::check_byte_level(decoder);
  }

  static void read_normalizer(const place& p) {
    if (p.is_null()) return;
    if (p.type() != "Sequence") p["type"].refuse("null or an empty Sequence");
    p.check_keys({"type", "normalizers"});
    p["normalizers"].expect(nlohmann::json::array());
  }

  /// Vocabulary, added tokens and merges.
  void read_model(const place& model, const place& added) {
    if (model.type() != "BPE") model["type"].refuse("\"BPE\"");
    model.check_keys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                      "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
    model["dropout"].expect_null_or(0.0);
    model["unk_token"].expect(nullptr);
    model["continuing_subword_prefix"].expect_null_or("");
    model["end_of_word_suffix"].expect_null_or("");
    model["byte_fallback"].expect_null_or(false);
    if (!model["fuse_unk"].is_null()) static_cast<void>(model["fuse_unk"].flag());  // there is no unk to fuse
    const bool ignore_merges = !model["ignore_merges"].is_null() && model["ignore_merges"].flag();

    const place vocab = model["vocab"];
    if (!vocab.value().is_object()) vocab.refuse("an object");
    if (!added.is_null() && !added.value().is_array()) added.refuse("an array");
    // An id alone must not decide how much memory the table takes.
    most_ids_ = static_cast<std::int64_t>(vocab.value().size() + added.value().size()) + 4096;
    for (const auto& [text, id] : vocab.value().items()) {
      const place where(vocab.file(), "model.vocab[" + detail::in_quotes(text) + "]", id);
      if (text.empty()) where.refuse("no empty token");
      // A token out of the byte alphabet is never merged to; it is there for an added token.
      new_token(where, text).bytes = detail::byte_alphabet::bytes(text).value_or(text);
    }
    merges_ = {vocab.file(), ids_, ignore_merges};
    model["merges"].for_each([&](const place& merge) { read_merge(merge); });
    if (!added.is_null()) added.for_each([&](const place& entry) { read_added(entry); });
  }

  /// Enters the token `text` with the id at `where`.
  token& new_token(const place& where, const std::string& text) {
    const std::int32_t id = where.id();
    if (id >= most_ids_)
      where.refuse("an id below " + std::to_string(most_ids_) + " (4096 more than there are tokens)");
    if (id >= size()) tokens_.resize(static_cast<std::size_t>(id) + 1);
    token& entry = tokens_[static_cast<std::size_t>(id)];
    if (entry.known) where.refuse("an id for each token, this one is taken");
    entry.known = true;
    ids_.emplace(text, id);
    return entry;
  }

  void read_merge(const place& merge) {
    std::string left, right;
    const auto& value = merge.value();
    if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
      left = value[0].get<std::string>();
      right = value[1].get<std::string>();
    } else {
      const std::string& both = value.is_string() ? merge.text() : std::string();
      const std::size_t space = both.find(' ');
      if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
        merge.refuse(R"("a b" or ["a", "b"])");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    }
    const auto known = [&](const std::string& text) {
      const auto found = id(text);
      if (!found)
        throw format_error(merge.file(), merge.path(), "tokens of the vocabulary", detail::in_quotes(text));
      return *found;
    };
    const std::int32_t a = known(left), b = known(right);
    if (!merges_.add_merge(a, b, known(left + right))) merge.refuse("each merge once");
  }

  void read_added(const place& entry) {
    entry.check_keys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    for (const char* unsupported : {"single_word", "lstrip", "rstrip"}) entry[unsupported].expect(false);
    const place text = entry["content"];
    const std::string& content = text.text();
    const std::int32_t id = entry["id"].id();
    if (content.empty()) text.refuse("a text");
    if (const auto there = this->id(content); !there) {
      new_token(entry["id"], content).bytes = content;
    } else if (*there != id) {
      entry["id"].refuse("the id " + std::to_string(*there) + " that the vocabulary has for it");
    } else if (bytes(id) != content) {
      text.refuse("no token that stands for other bytes in the vocabulary");
    }
    token& made = tokens_[static_cast<std::size_t>(id)];
    if (!added_.insert(id).second) text.refuse("each added token once");
    made.special = entry["special"].flag();
    (entry["normalized"].flag() ? normalized_ : raw_).add(content, id);
  }

  void read_post_processor(const place& p, bool& template_seen) {
    if (p.is_null()) return;
    const std::string& type = p.type();
    if (type == "Sequence") {
      p.check_keys({"type", "processors"});
      p["processors"].for_each([&](const place& part) { read_post_processor(part, template_seen); });
    } else if (type == "ByteLevel") {
      detail::check_byte_level(p);  // moves offsets only
    } else if (type == "TemplateProcessing") {
      if (std::exchange(template_seen, true)) p.refuse("one TemplateProcessing");
      read_template(p);
    } else {
      p["type"].refuse("ByteLevel, TemplateProcessing or Sequence");
    }
  }

  /// Specials around one text; `pair` is for two.
  void read_template(const place& p) {
    p.check_keys({"type", "single", "pair", "special_tokens"});
    bool text_seen = false;
    p["single"].for_each([&](const place& part) {
      part.check_keys({"SpecialToken", "Sequence"});
      const place sequence = part["Sequence"], special = part["SpecialToken"];
      if (sequence.is_null() == special.is_null()) part.refuse("a SpecialToken or a Sequence");
      (special.is_null() ? sequence : special).check_keys({"id", "type_id"});
      if (special.is_null()) {
        sequence["id"].expect("A");
        if (std::exchange(text_seen, true)) part.refuse("the text once");
        return;
      }
      const place id = special["id"];
      const std::string& name = id.text();
      const place table = p["special_tokens"];
      if (!table.value().is_object()) table.refuse("an object");
      const place entry = table[name.c_str()];
      entry.check_keys({"id", "ids", "tokens"});
      entry["ids"].for_each([&](const place& number) {
        if (!contains(number.id())) number.refuse("the id of a token");
        (text_seen ? suffix_ : prefix_).push_back(number.id());
      });
    });
    if (!text_seen) p["single"].refuse("a template with the text in it");
  }

  detail::token_ids ids_;
  std::vector<token> tokens_;
  std::int64_t most_ids_ = 0;
  std::unordered_set<std::int32_t> added_;
  detail::added_token_set raw_, normalized_;
  detail::pre_tokenizer splits_;
  detail::byte_pair_encoding merges_;
  std::vector<std::int32_t> prefix_, suffix_;
};

/// Decodes a stream of tokens to text that can be shown at once: never half a UTF-8 character. All that push
/// and finish give is, together, what decode gives. Refers to the tokenizer.
class streaming_decoder {
 public:
  explicit streaming_decoder(const tokenizer& with, bool skip_special = false)
      : tokenizer_(&with), skip_special_(skip_special) {}
  explicit streaming_decoder(tokenizer&&, bool = false) = delete;  // it would be gone

  /// What is certain after token `id`. Bytes that no later one can complete to a character come out as they
  /// are. Throws contract_error where `id` is no token.
  [[nodiscard]] std::string push(std::int32_t id) {
    const std::string_view bytes = tokenizer_->bytes(id);
    if (!skip_special_ || !tokenizer_->is_special(id)) held_ += bytes;
    std::size_t ready = 0;
    while (ready < held_.size()) {
      const int length = detail::utf8_length(std::string_view(held_).substr(ready));
      if (length < 0) break;
      ready += static_cast<std::size_t>(std::max(length, 1));
    }
    std::string out = held_.substr(0, ready);
    held_.erase(0, ready);
    return out;
  }

  /// The beginning of a character that never came to its end; empty after whole text.
  [[nodiscard]] std::string finish() { return std::exchange(held_, {}); }

 private:
  const tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;
};

}  // namespace dsv4::io
