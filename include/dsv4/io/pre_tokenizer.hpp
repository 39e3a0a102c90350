// SPDX-License-Identifier: Apache-2.0
/// The cutting of text into the pieces within which byte-pair encoding merges, as tokenizer.json has it.
#pragma once

#include <dsv4/io/regular_expression.hpp>
#include <dsv4/io/tokenizer_json.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv4::io::detail {

/// What a split does with the matches: pieces of their own, dropped, or joined to what is beside them.
enum class split_behavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

struct split_step {
  regular_expression pattern;
  split_behavior behavior;
};

/// Applies splits one after the other, each to every piece that the one before it left.
class pre_tokenizer {
 public:
  void add(split_step step) { steps_.push_back(std::move(step)); }

  /// The pieces of `text`, well-formed UTF-8, in order; none is empty.
  [[nodiscard]] std::vector<std::string_view> pieces(std::string_view text,
                                                     match_workspace& workspace) const {
    std::vector<std::string_view> now, next;
    if (!text.empty()) now.push_back(text);
    for (const split_step& step : steps_) {
      next.clear();
      for (const std::string_view piece : now) split(step, piece, workspace, next);
      std::swap(now, next);
    }
    return now;
  }

 private:
  struct part {
    std::size_t begin, end;
    bool match;
  };

  static void split(const split_step& step, std::string_view text, match_workspace& workspace,
                    std::vector<std::string_view>& out) {
    std::vector<part> parts;
    std::size_t done = 0;
    step.pattern.for_each_match(text, workspace, [&](std::size_t begin, std::size_t end) {
      if (done != begin) parts.push_back({done, begin, false});
      parts.push_back({begin, end, true});
      done = end;
    });
    if (done != text.size()) parts.push_back({done, text.size(), false});
    for (std::size_t i = 0; i < parts.size();) {
      std::size_t last = i;  // parts i to last become one piece
      if (step.behavior == split_behavior::contiguous) {
        while (last + 1 < parts.size() && parts[last + 1].match == parts[i].match) ++last;
      } else if (step.behavior == split_behavior::merged_with_previous) {
        if (!parts[i].match && last + 1 < parts.size()) ++last;  // what follows text is a match
      } else if (step.behavior == split_behavior::merged_with_next) {
        if (parts[i].match && last + 1 < parts.size() && !parts[last + 1].match) ++last;
      }
      const std::size_t begin = parts[i].begin, end = parts[last].end;
      if (begin != end && !(step.behavior == split_behavior::removed && parts[i].match))
        out.push_back(text.substr(begin, end - begin));
      i = last + 1;
    }
  }

  std::vector<split_step> steps_;
};

/// Throws format_error where `p` is no ByteLevel component, wherever it stands.
inline void check_byte_level(const json_place& p) {
  p.check_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"})
    if (!p[key].is_null()) static_cast<void>(p[key].flag());
}

/// Reads a pre_tokenizer.
class pre_tokenizer_reader {
 public:
  explicit pre_tokenizer_reader(const json_place& p) {
    bool byte_level = false;
    read_pre_tokenizer(p, byte_level);
    if (!byte_level) p.refuse("ByteLevel, or a Sequence that ends with it");
  }

  [[nodiscard]] pre_tokenizer take() && { return std::move(splits_); }

 private:
  void add_split(const json_place& p, std::string_view pattern, split_behavior behavior) {
    constexpr std::size_t most = 64;
    if (++split_count_ > most) p.refuse("at most 64 splits");
    splits_.add({regular_expression(p.file(), p.path(), pattern), behavior});
  }

  void read_pre_tokenizer(const json_place& p, bool& byte_level) {
    if (p.is_null()) return;
    const std::string& type = p.type();
    // From here on the peer splits the letters that stand for bytes.
    if (byte_level) p["type"].refuse("nothing after ByteLevel");
    if (type == "Sequence") {
      p.check_keys({"type", "pretokenizers"});
      p["pretokenizers"].for_each([&](const json_place& part) {
        if (part.is_null()) part.refuse("an object");
        read_pre_tokenizer(part, byte_level);
      });
    } else if (type == "ByteLevel") {
      check_byte_level(p);
      p["add_prefix_space"].expect(false);
      byte_level = true;
      constexpr std::string_view words =
          R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
      if (p["use_regex"].is_null() || p["use_regex"].flag())
        add_split(p, pattern_translation(p.file(), p.path(), words).text(), split_behavior::isolated);
    } else if (type == "Digits") {
      p.check_keys({"type", "individual_digits"});
      const bool each = p["individual_digits"].flag();
      add_split(p, each ? R"(\p{N})" : R"(\p{N}+)", split_behavior::isolated);
    } else if (type == "Split") {
      read_split(p);
    } else {
      p["type"].refuse("ByteLevel, Digits, Split or Sequence");
    }
  }

  void read_split(const json_place& p) {
    p.check_keys({"type", "pattern", "behavior", "invert"});
    p["invert"].expect(false);
    const json_place pattern = p["pattern"];
    pattern.check_keys({"String", "Regex"});
    const json_place literal = pattern["String"], regex = pattern["Regex"];
    if (literal.is_null() == regex.is_null()) pattern.refuse("a String or a Regex");
    const std::string& source = (regex.is_null() ? literal : regex).text();
    if (source.empty()) pattern.refuse("a pattern that is not empty");
    constexpr std::pair<std::string_view, split_behavior> behaviors[] = {
        {"Isolated", split_behavior::isolated},
        {"Removed", split_behavior::removed},
        {"MergedWithPrevious", split_behavior::merged_with_previous},
        {"MergedWithNext", split_behavior::merged_with_next},
        {"Contiguous", split_behavior::contiguous}};
    for (const auto& [name, behavior] : behaviors)
      if (p["behavior"].value() == name)
        return add_split(p,
                         regex.is_null() ? pattern_translation::of_literal(source)
                                         : pattern_translation(p.file(), regex.path(), source).text(),
                         behavior);
    p["behavior"].refuse("a behavior of Split");
  }

  pre_tokenizer splits_;
  std::size_t split_count_ = 0;
};

/// The splits of a pre_tokenizer that ends with ByteLevel. Throws format_error.
inline pre_tokenizer read_pre_tokenizer(const json_place& p) { return pre_tokenizer_reader(p).take(); }

}  // namespace dsv4::io::detail
