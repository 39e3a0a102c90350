// SPDX-License-Identifier: Apache-2.0
/// JSON from files that nobody vouches for: event parsing with the library's own errors.
#pragma once

#include <dsv4/core/error.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace dsv4::io::detail {

/// Text of a hostile file, fit for a message: control characters escaped, long text cut.
[[nodiscard]] inline std::string printable(std::string_view text) {
  constexpr std::size_t longest = 160;
  std::size_t length = std::min(text.size(), longest);
  // Do not cut inside a UTF-8 sequence.
  while (length < text.size() && length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U) {
    --length;
  }
  std::string out;
  for (const char c : text.substr(0, length)) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7F) {
      constexpr std::string_view digits = "0123456789abcdef";
      out += {'\\', 'x', digits[code >> 4U], digits[code & 15U]};
    } else {
      out += c;
    }
  }
  return length < text.size() ? out + "..." : out;
}

[[nodiscard]] inline std::string in_quotes(std::string_view text) {
  return std::string(1, '\'').append(printable(text)) + '\'';
}

/// Feeds `text` to `sax`, which throws on what it refuses. nlohmann's SAX parser keeps its nesting on
/// the heap, so no input can exhaust the stack. Throws `format_error` on text that is not one JSON value.
template <class Sax>
void parse_json(std::string_view file, std::string_view item, std::string_view text, Sax& sax) {
  // nlohmann takes NUL for the end of the input, which would hide whatever follows it.
  if (text.find('\0') != std::string_view::npos) throw format_error(file, item, "JSON", "a NUL byte");
  try {
    if (nlohmann::json::sax_parse(text.begin(), text.end(), &sax)) return;
  } catch (const nlohmann::json::exception& failure) {
    throw format_error(file, item, "JSON", printable(failure.what()));
  }
  throw format_error(file, item, "JSON", "text that does not parse");
}

}  // namespace dsv4::io::detail
