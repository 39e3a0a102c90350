// SPDX-License-Identifier: Apache-2.0
/// Regular expressions as Oniguruma reads them, matched by PCRE2; and what they need of UTF-8.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checked_json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <string_view>

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

namespace dsv4::io::detail {

/// What `text` starts with: the length of a well-formed UTF-8 character, 0 where no bytes after it could make
/// one of it, or -1 where `text` ends within one. No surrogates, nothing overlong, nothing above U+10FFFF.
[[nodiscard]] inline int utf8_length(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(text[i])); };
  if (text.empty()) return -1;
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < static_cast<std::size_t>(length); ++i) {
    if (i == text.size()) return -1;
    unsigned least = 0x80, most = 0xBF;
    if (i == 1 && lead == 0xE0) least = 0xA0;
    if (i == 1 && lead == 0xED) most = 0x9F;
    if (i == 1 && lead == 0xF0) least = 0x90;
    if (i == 1 && lead == 0xF4) most = 0x8F;
    if (byte(i) < least || byte(i) > most) return 0;
  }
  return length;
}

/// The code points of `text`, which is well-formed UTF-8.
[[nodiscard]] inline std::u32string utf8_code_points(std::string_view text) {
  std::u32string out;
  while (!text.empty()) {
    const auto length = static_cast<std::size_t>(std::max(utf8_length(text), 1));
    auto code = static_cast<std::uint32_t>(static_cast<unsigned char>(text[0]));
    if (length > 1) code &= 0x7FU >> length;
    for (std::size_t i = 1; i < length; ++i)
      code = code << 6U | (static_cast<unsigned char>(text[i]) & 0x3FU);
    out += static_cast<char32_t>(code);
    text.remove_prefix(length);
  }
  return out;
}

/// A regular expression as Oniguruma reads it, written for PCRE2. The two differ in what `\s`, `\h`, `\v`,
/// `\w`, `\R`, `{n}+`, `[a[b]]`, `[a&&b]` and scripts mean: each construct is either rewritten into one that
/// means the same to both, or refused. Throws format_error.
class pattern_translation {
 public:
  pattern_translation(std::string_view file, std::string_view item, std::string_view source)
      : file_(file), item_(item), whole_(source) {
    constexpr std::size_t longest = 4096;
    if (source.empty() || source.size() > longest)
      refuse("a pattern of 1 to 4096 bytes", std::to_string(source.size()) + " bytes");
    source_ = utf8_code_points(source);
    while (at_ < source_.size()) translate_one();
  }

  [[nodiscard]] const std::string& text() const noexcept { return out_; }

  /// A pattern that matches `literal` and nothing else.
  static std::string of_literal(std::string_view literal) {
    std::string out;
    for (const char32_t code : utf8_code_points(literal)) out += spelled(code);
    return out;
  }

 private:
  static constexpr std::u32string_view punctuation = U"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ";
  // White_Space; PCRE2's own \s has U+180E as well.
  static constexpr const char* space =
      R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
  static constexpr const char* no_space =
      R"(\x{0}-\x{8}\x{E}-\x{1F}\x{21}-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027})"
      R"(\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{D7FF}\x{E000}-\x{10FFFF})";

  static std::string spelled(char32_t code) {
    std::string digits;
    for (auto rest = static_cast<std::uint32_t>(code); rest != 0 || digits.empty(); rest >>= 4U)
      digits.insert(digits.begin(), "0123456789ABCDEF"[rest & 15U]);
    return "\\x{" + digits + "}";
  }

  [[noreturn]] void refuse(std::string_view expected, std::string_view found) const {
    throw format_error(file_, item_, expected, found);
  }
  [[noreturn]] void refuse(std::string_view what) const {
    refuse("a regular expression that is supported",
           std::string(what) + " before position " + std::to_string(at_) + " of " + in_quotes(whole_));
  }

  [[nodiscard]] bool next_is(std::u32string_view text) const {
    return std::u32string_view(source_).substr(at_).starts_with(text);
  }
  bool take(std::u32string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }
  char32_t take() {
    if (at_ == source_.size()) refuse("an end");
    return source_[at_++];
  }

  void translate_one() {
    const char32_t c = take();
    if (c == U'[') return bracket();
    if (c == U'(') return group();
    if (c == U'{') return interval();
    if (c == U'\\') {
      const member m = escape();
      out_ += m.set.empty() ? spelled(m.code) : "[" + m.set + "]";
    } else if (std::u32string_view(U"*+?|).^$").find(c) != std::u32string_view::npos) {
      out_ += static_cast<char>(c);
    } else {
      out_ += spelled(c);
    }
  }

  void group() {
    if (!take(U"?")) {
      if (next_is(U"*")) refuse("'(*'");
      out_ += "(?:";  // nobody reads captures
      return;
    }
    for (const char* kind : {":", "=", "!", ">", "<=", "<!"})
      if (take(std::u32string(kind, kind + std::string_view(kind).size()))) {
        out_ += std::string("(?") + kind;
        return;
      }
    refuse("a group of another kind than (?: (?= (?! (?> (?<= (?<!");
  }

  void interval() {
    const std::string least = number();
    std::string most = least;
    const bool range = take(U",");
    if (range) most = number();
    if (!take(U"}") || least.empty() || next_is(U"+") || (!range && next_is(U"?")))
      refuse("a repetition other than {n}, {n,}, {n,m} and the last two with '?'");
    out_ += "{" + least + (range ? "," + most : "") + "}";
  }

  std::string number() {
    std::string digits;
    while (at_ < source_.size() && source_[at_] >= U'0' && source_[at_] <= U'9')
      digits += static_cast<char>(source_[at_++]);
    return digits;
  }

  void bracket() {
    out_ += take(U"^") ? "[^" : "[";
    for (bool first = true; !take(U"]"); first = false) {
      const member from = bracket_member();
      const bool literal_dash = from.plain_dash;
      if (literal_dash && !first && !next_is(U"]")) refuse("a '-' that is not escaped");
      if (!from.set.empty()) {
        out_ += from.set;
        if (next_is(U"-") && !next_is(U"-]")) refuse("a range from a class");
        continue;
      }
      out_ += spelled(from.code);
      if (!next_is(U"-") || next_is(U"-]")) continue;
      if (literal_dash) refuse("a '-' that is not escaped");
      take();
      const member to = bracket_member();
      if (!to.set.empty() || to.plain_dash || to.code < from.code) refuse("a range without an end");
      out_ += "-" + spelled(to.code);
    }
    if (out_.ends_with("[") || out_.ends_with("[^")) refuse("an empty class");
    out_ += "]";
  }

  /// One character, or a set of them as the inside of a bracket.
  struct member {
    char32_t code = 0;
    std::string set;
    bool plain_dash = false;
  };

  member bracket_member() {
    const char32_t c = take();
    if (c == U'\\') return escape();
    if (c == U'[' || (c == U'&' && next_is(U"&"))) refuse("a class within a class");
    return {c, {}, c == U'-'};
  }

  member escape() {
    constexpr std::u32string_view letters = U"atnvfre", controls = U"\a\t\n\v\f\r\x1B";
    const char32_t c = take();
    if (c == U'd') return {0, R"(\p{Nd})"};
    if (c == U'D') return {0, R"(\P{Nd})"};
    if (c == U's') return {0, space};
    if (c == U'S') return {0, no_space};
    if (c == U'p' || c == U'P') return {0, property(c == U'P')};
    if (c == U'x') return {hexadecimal(), {}};
    if (c == U'u') return {digits(4, 4), {}};
    if (const auto i = letters.find(c); i != std::u32string_view::npos) return {controls[i], {}};
    if (punctuation.find(c) == std::u32string_view::npos) refuse("an escape that is not supported");
    return {c, {}};
  }

  char32_t hexadecimal() {
    if (take(U"{")) {
      const char32_t code = digits(1, 6);
      if (!take(U"}")) refuse(R"(\x{ without })");
      return code;
    }
    const char32_t code = digits(1, 2);
    if (code > 0x7F) refuse("half a character");  // Oniguruma takes \xHH for a byte
    return code;
  }

  char32_t digits(int least, int most) {
    std::uint32_t code = 0;
    int count = 0;
    for (; count < most && at_ < source_.size(); ++count, ++at_) {
      const auto found = std::u32string_view(U"0123456789abcdefABCDEF").find(source_[at_]);
      if (found == std::u32string_view::npos) break;
      code = code * 16 + static_cast<std::uint32_t>(found < 16 ? found : found - 6);
    }
    if (count < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) refuse("no code point");
    return static_cast<char32_t>(code);
  }

  /// A general category: the only properties that mean the same to both, up to the Unicode version.
  std::string property(bool negated) {
    constexpr std::string_view categories =
        " C Cc Cf Cn Co Cs L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps S Sc Sk Sm So Z Zl "
        "Zp Zs ";
    if (!take(U"{")) refuse(R"(\p without {)");
    if (take(U"^")) negated = !negated;
    std::string name;
    for (char32_t c = take(); c != U'}'; c = take())
      name += c > 0x20 && c < 0x7F ? static_cast<char>(c) : '?';
    if (categories.find(" " + name + " ") == std::string_view::npos)
      refuse("a property that is no general category");
    return std::string(negated ? R"(\P{)" : R"(\p{)") + name + "}";
  }

  std::string_view file_, item_, whole_;
  std::u32string source_;
  std::size_t at_ = 0;
  std::string out_;
};

/// What one thread needs to match patterns; usable for all of them in turn.
class match_workspace {
 public:
  match_workspace()
      : data_(pcre2_match_data_create_8(1, nullptr)), context_(pcre2_match_context_create_8(nullptr)) {
    if (!data_ || !context_) throw std::bad_alloc();
    constexpr std::uint32_t heap_kibibytes = 1U << 20U;
    pcre2_set_heap_limit_8(context_.get(), heap_kibibytes);
  }

 private:
  friend class regular_expression;
  struct destroy {
    void operator()(pcre2_match_data_8* data) const noexcept { pcre2_match_data_free_8(data); }
    void operator()(pcre2_match_context_8* context) const noexcept { pcre2_match_context_free_8(context); }
  };
  std::unique_ptr<pcre2_match_data_8, destroy> data_;
  std::unique_ptr<pcre2_match_context_8, destroy> context_;
};

/// A compiled pattern. Immutable: threads may share it, each with its own workspace.
class regular_expression {
 public:
  /// `pattern` is one for PCRE2; `item` is what messages call it. Throws format_error where it does not
  /// compile.
  regular_expression(std::string_view file, std::string_view item, std::string_view pattern) {
    int code = 0;
    std::size_t offset = 0;
    // Oniguruma's ^ and $ are those of lines. \n is PCRE2's newline unless it was built otherwise.
    const std::unique_ptr<pcre2_compile_context_8, destroy> context(pcre2_compile_context_create_8(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);
    code_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                                &offset, context.get()));
    if (!code_)
      throw format_error(file, item, "a regular expression", message(code) + " in " + in_quotes(pattern));
    pcre2_jit_compile_8(code_.get(), PCRE2_JIT_COMPLETE);  // matching interprets where there is no JIT
  }

  /// Calls `each(begin, end)` for the matches in `text`, well-formed UTF-8, from left to right. An empty
  /// match directly after another match is none. Throws `error` where PCRE2 gives up.
  template <class F>
  void for_each_match(std::string_view text, match_workspace& workspace, const F& each) const {
    std::size_t last_end = std::string_view::npos;
    for (std::size_t from = 0; from <= text.size();) {
      if (!search(text, from, workspace)) return;
      const std::size_t* const found = pcre2_get_ovector_pointer_8(workspace.data_.get());
      const std::size_t begin = found[0], end = found[1];
      if (begin == end && end == last_end) {
        from = end + static_cast<std::size_t>(std::max(utf8_length(text.substr(end)), 1));
        continue;
      }
      each(begin, end);
      from = last_end = end;
    }
  }

 private:
  struct destroy {
    void operator()(pcre2_code_8* code) const noexcept { pcre2_code_free_8(code); }
    void operator()(pcre2_compile_context_8* context) const noexcept {
      pcre2_compile_context_free_8(context);
    }
  };

  static std::string message(int code) {
    std::array<unsigned char, 256> text{};
    pcre2_get_error_message_8(code, text.data(), text.size());
    return reinterpret_cast<const char*>(text.data());
  }

  bool search(std::string_view text, std::size_t from, match_workspace& workspace) const {
    // The limit is there to stop exponential patterns, not long texts.
    constexpr std::uint64_t least = 10'000'000, most = 0xFFFFFFFF;
    pcre2_set_match_limit_8(
        workspace.context_.get(),
        static_cast<std::uint32_t>(std::min(most, std::max<std::uint64_t>(least, 16 * text.size()))));
    const auto match = [&](std::uint32_t options) {
      return pcre2_match_8(code_.get(), reinterpret_cast<PCRE2_SPTR8>(text.data()), text.size(), from,
                           PCRE2_NO_UTF_CHECK | options, workspace.data_.get(), workspace.context_.get());
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);  // which has the heap
    if (result < 0 && result != PCRE2_ERROR_NOMATCH)
      throw error("tokenizer: matching a regular expression: " + message(result));
    return result >= 0;
  }

  std::unique_ptr<pcre2_code_8, destroy> code_;
};

}  // namespace dsv4::io::detail
