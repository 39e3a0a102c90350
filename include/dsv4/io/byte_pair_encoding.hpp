// SPDX-License-Identifier: Apache-2.0
/// Byte-level byte-pair encoding: which tokens the bytes of a piece of text become, and the tokens beside it.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/regular_expression.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace dsv4::io::detail {

/// Strings as keys that a string_view finds.
struct string_hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
};
using token_ids = std::unordered_map<std::string, std::int32_t, string_hash, std::equal_to<>>;

/// The printable characters that stand for bytes in byte-level vocabularies: printable Latin-1 for itself,
/// the others for U+0100 and up in their order.
class byte_alphabet {
 public:
  static constexpr std::size_t highest = 323;  ///< the last code point in use

  /// The character for `byte`, in UTF-8.
  [[nodiscard]] static std::string symbol(unsigned char byte) {
    const auto code = static_cast<unsigned>(tables().code_points[byte]);
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return {static_cast<char>(0xC0U | code >> 6U), static_cast<char>(0x80U | (code & 0x3FU))};
  }

  /// The bytes that `token` spells, or nothing where a character of it stands for no byte.
  [[nodiscard]] static std::optional<std::string> bytes(std::string_view token) {
    std::string out;
    for (const char32_t code : utf8_code_points(token)) {
      if (code > highest || tables().bytes[code] < 0) return std::nullopt;
      out += static_cast<char>(tables().bytes[code]);
    }
    return out;
  }

 private:
  struct two_ways {
    std::array<std::int16_t, 256> code_points{};
    std::array<std::int16_t, highest + 1> bytes{};
  };
  static constexpr two_ways both() {
    two_ways out;
    for (auto& byte : out.bytes) byte = -1;
    std::int16_t next = 256;
    for (std::int16_t byte = 0; byte < 256; ++byte) {
      const bool itself = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      const std::int16_t code = itself ? byte : next++;
      out.code_points[static_cast<std::size_t>(byte)] = code;
      out.bytes[static_cast<std::size_t>(code)] = byte;
    }
    return out;
  }
  static const two_ways& tables() {
    static constexpr two_ways made = both();
    return made;
  }
};

/// Merges the bytes of a piece into tokens. Immutable once built.
class byte_pair_encoding {
 public:
  /// What one thread needs to encode; kept between pieces only to save allocations.
  struct workspace {
    struct symbol {
      std::int32_t id, previous, next;  // id -1: merged into a symbol to its left
    };
    struct candidate {
      std::int32_t rank, position, id;
    };
    std::vector<symbol> symbols;
    std::vector<candidate> queue;
  };

  byte_pair_encoding() = default;

  /// `vocabulary`: the tokens in the byte alphabet. `ignore_merges`: a piece that is a token is that token,
  /// whatever the merges say. Throws format_error where a byte that UTF-8 has is no token.
  byte_pair_encoding(std::string_view file, const token_ids& vocabulary, bool ignore_merges) {
    for (int byte = 0; byte < 256; ++byte) {
      const std::string symbol = byte_alphabet::symbol(static_cast<unsigned char>(byte));
      const auto found = vocabulary.find(symbol);
      bytes_[static_cast<std::size_t>(byte)] = found == vocabulary.end() ? -1 : found->second;
      // The others occur in no UTF-8 text, and some vocabularies leave them out.
      const bool in_utf8 = byte < 0xC0 || (byte > 0xC1 && byte < 0xF5);
      if (in_utf8 && found == vocabulary.end())
        throw format_error(file, "model.vocab", "a token for every byte of UTF-8",
                           "none for byte " + std::to_string(byte) + " (" + symbol + ")");
    }
    if (!ignore_merges) return;
    for (const auto& [token, id] : vocabulary)
      if (const auto spelled = byte_alphabet::bytes(token)) pieces_.emplace(*spelled, id);
  }

  /// Adds the merge that ranks after those that are there. False where the pair has one already.
  bool add_merge(std::int32_t left, std::int32_t right, std::int32_t merged) {
    return merges_.emplace(key(left, right), merge{static_cast<std::int32_t>(merges_.size()), merged}).second;
  }

  /// Appends the tokens of `piece` to `out`: of all pairs that may merge, the one that ranks first does, the
  /// leftmost of equals, until none is left. n bytes take O(n log n). Throws contract_error on a byte that is
  /// no token, or on 2 GiB and more.
  void encode(std::string_view piece, workspace& w, std::vector<std::int32_t>& out) const {
    if (const auto whole = pieces_.find(piece); whole != pieces_.end()) return out.push_back(whole->second);
    if (piece.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
      throw contract_error("tokenizer::encode", "text", "pieces below 2 GiB",
                           std::to_string(piece.size()) + " bytes");
    const auto size = static_cast<std::int32_t>(piece.size());
    w.symbols.clear();
    w.queue.clear();
    for (std::int32_t i = 0; i < size; ++i) {
      const auto byte = static_cast<unsigned char>(piece[static_cast<std::size_t>(i)]);
      if (bytes_[byte] < 0)
        throw contract_error("tokenizer::encode", "text", "bytes that the vocabulary has",
                             "byte " + std::to_string(byte));
      w.symbols.push_back({bytes_[byte], i - 1, i + 1 < size ? i + 1 : -1});
    }
    for (std::int32_t i = 0; i + 1 < size; ++i) consider(w, i, false);
    std::make_heap(w.queue.begin(), w.queue.end(), later);
    while (!w.queue.empty()) {
      std::pop_heap(w.queue.begin(), w.queue.end(), later);
      const workspace::candidate first = w.queue.back();
      w.queue.pop_back();
      apply(w, first);
    }
    for (const auto& symbol : w.symbols)
      if (symbol.id >= 0) out.push_back(symbol.id);
  }

 private:
  struct merge {
    std::int32_t rank, id;
  };

  static std::uint64_t key(std::int32_t left, std::int32_t right) noexcept {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U |
           static_cast<std::uint32_t>(right);
  }
  static bool later(const workspace::candidate& a, const workspace::candidate& b) noexcept {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  }
  static workspace::symbol& at(workspace& w, std::int32_t position) noexcept {
    return w.symbols[static_cast<std::size_t>(position)];
  }

  /// The merge of the symbol at `position` with its right neighbour, or null.
  const merge* find(workspace& w, std::int32_t position) const {
    const workspace::symbol& left = at(w, position);
    const auto found = merges_.find(key(left.id, at(w, left.next).id));
    return found == merges_.end() ? nullptr : &found->second;
  }

  void consider(workspace& w, std::int32_t position, bool heap) const {
    const merge* const found = find(w, position);
    if (!found) return;
    w.queue.push_back({found->rank, position, found->id});
    if (heap) std::push_heap(w.queue.begin(), w.queue.end(), later);
  }

  void apply(workspace& w, const workspace::candidate& wanted) const {
    workspace::symbol& left = at(w, wanted.position);
    if (left.id < 0 || left.next < 0) return;
    // Merges since then may have changed the pair. Only the result decides, as in the peer implementation,
    // which lets a pair go ahead of its rank where an earlier one here would have given the same token.
    if (const merge* const found = find(w, wanted.position); !found || found->id != wanted.id) return;
    workspace::symbol& right = at(w, left.next);
    left.id = wanted.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(w, left.next).previous = wanted.position;
    if (left.previous >= 0) consider(w, left.previous, true);
    if (left.next >= 0) consider(w, wanted.position, true);
  }

  std::array<std::int32_t, 256> bytes_{};
  std::unordered_map<std::uint64_t, merge> merges_;
  token_ids pieces_;  // by their bytes; only for ignore_merges
};

/// Strings that are looked for in text, each with a token.
class added_token_set {
 public:
  void add(std::string_view content, std::int32_t id) {
    std::uint32_t node = 0;
    for (const char c : content) node = edges_.try_emplace(edge(node, c), ++nodes_).first->second;
    ids_.emplace(node, id);
    starts_[static_cast<unsigned char>(content.front())] = true;
  }

  /// Calls `token(id)` for the strings in `text` and `between(part)` for what is not one, in order. The
  /// leftmost string comes first, the longest of those that start there.
  template <class Token, class Between>
  void split(std::string_view text, const Token& token, const Between& between) const {
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto [length, id] = longest(text.substr(at));
      if (length == 0) {
        ++at;
        continue;
      }
      if (at > done) between(text.substr(done, at - done));
      token(id);
      done = at += length;
    }
    if (done < text.size()) between(text.substr(done));
  }

 private:
  static std::uint64_t edge(std::uint32_t node, char c) noexcept {
    return std::uint64_t{node} << 8U | static_cast<unsigned char>(c);
  }
  [[nodiscard]] std::pair<std::size_t, std::int32_t> longest(std::string_view text) const {
    std::pair<std::size_t, std::int32_t> best{0, 0};
    if (!starts_[static_cast<unsigned char>(text.front())]) return best;
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto next = edges_.find(edge(node, text[i]));
      if (next == edges_.end()) break;
      node = next->second;
      if (const auto id = ids_.find(node); id != ids_.end()) best = {i + 1, id->second};
    }
    return best;
  }

  std::unordered_map<std::uint64_t, std::uint32_t> edges_;  // a trie; node 0 is its root
  std::unordered_map<std::uint32_t, std::int32_t> ids_;
  std::array<bool, 256> starts_{};
  std::uint32_t nodes_ = 0;
};

}  // namespace dsv4::io::detail
