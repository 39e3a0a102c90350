// SPDX-License-Identifier: Apache-2.0
/// Fuzz target: any tokenizer.json must parse or be refused with `format_error`; what parses must encode and
/// decode any bytes, or say why not. Input: a byte, then two parts with a NUL between them, the second of
/// which is the text. The first part is a file (byte even) or the pattern of a Split in a good file (odd).
///
///   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude
///   tests/fuzz/tokenizer_json.cpp -lpcre2-8
#include <dsv4/io/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace {

/// A tokenizer.json of all bytes and one merge, whose pieces `pattern` isolates.
std::string with_pattern(std::string_view pattern) {
  using nlohmann::json;
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[dsv4::io::detail::byte_alphabet::symbol(static_cast<unsigned char>(byte))] = byte;
  vocab["ab"] = 256;
  const json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const json file = {{"version", "1.0"},
                     {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
                     {"decoder", {{"type", "ByteLevel"}}},
                     {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array({"a b"})}}}};
  return file.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  if (rest.empty()) return 0;
  const bool pattern = rest.front() & 1;
  rest.remove_prefix(1);
  const std::size_t end = rest.find('\0');
  const std::string_view first = rest.substr(0, end);
  const std::string_view text = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  try {
    const auto tokenizer =
        dsv4::io::tokenizer::parse(pattern ? with_pattern(first) : std::string(first), "input.json");
    const std::vector<std::int32_t> ids = tokenizer.encode(text, true);
    const std::string decoded = tokenizer.decode(ids);
    if (pattern && decoded != text) __builtin_trap();
    dsv4::io::streaming_decoder stream(tokenizer);
    std::string streamed;
    for (const std::int32_t id : ids) {
      if (!tokenizer.contains(id)) __builtin_trap();
      streamed += stream.push(id);
    }
    if (streamed + stream.finish() != decoded) __builtin_trap();
  } catch (const dsv4::error&) {
    // The only way out: a bad file, a pattern that takes too long, a byte without a token.
  }
  return 0;
}
