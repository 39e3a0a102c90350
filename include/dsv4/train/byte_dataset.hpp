// SPDX-License-Identifier: Apache-2.0
/// Training rows from a text, byte by byte: documents, packed into rows with their boundaries.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/core/hash.hpp>
#include <dsv4/train/shuffle.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsv4 {

/// How documents become rows of at most `row_tokens` tokens.
enum class row_packing {
  best_fit,  ///< a document stays whole if it fits a row; longer ones are cut. Rows may be short
  windows,   ///< all documents one after the other, cut every `row_tokens` tokens
};

struct byte_dataset_options {
  std::int64_t row_tokens = 512;
  std::string separator = {};  ///< between documents, and part of none; empty: all is one document
  row_packing packing = row_packing::best_fit;
  std::int32_t begin_token = 256;  ///< before every document; -1: none
  std::int32_t end_token = 257;    ///< after every document; -1: none
  double held_out = 0.05;          ///< share of the bytes, at the end, that is never trained on
  std::uint64_t seed = 0;          ///< of the order of training rows
};

/// One row. All inputs have a target; a document never sees another one. Row t of a multi-token-prediction
/// block takes targets[t] as its token and second_targets[t] as its target, where that is not -1.
struct packed_row {
  std::vector<std::int32_t> tokens, targets, second_targets;
  std::vector<std::int64_t> offsets;    ///< document d of the row is tokens [offsets[d], offsets[d + 1])
  std::vector<std::int64_t> positions;  ///< of each document's first token here within the whole document
};

enum class data_split { training, held_out };

/// A text as training rows. The bytes are not copied and must outlive the dataset: map a file with
/// io::mapped_file. What a row holds depends on the bytes and the options alone, so one number, the count of
/// training rows taken, is all that a run needs to continue exactly.
class byte_dataset {
 public:
  /// Throws contract_error for options out of range, and when a split would be empty.
  explicit byte_dataset(std::span<const std::byte> bytes, const byte_dataset_options& options = {})
      : bytes_(bytes), options_(options) {
    expect(options.row_tokens >= 1, "byte_dataset", "row_tokens", "at least 1", options.row_tokens);
    if (!(options.held_out >= 0 && options.held_out < 1))
      throw contract_error("byte_dataset", "held_out", "0 or more and less than 1",
                           std::to_string(options.held_out));
    find_documents();
    pack(training_);
    pack(held_out_);
    expect(rows(data_split::training) > 0, "byte_dataset", "bytes", "text to train on", size());
    expect(options.held_out == 0 || rows(data_split::held_out) > 0, "byte_dataset", "bytes",
           "text to hold out", size());
  }

  std::int64_t rows(data_split split) const { return part(split).rows; }
  /// Documents, of which one may have been cut in two between the splits; inputs to train or test on.
  std::int64_t documents(data_split split) const {
    return static_cast<std::int64_t>(part(split).documents.size());
  }
  std::int64_t tokens(data_split split) const { return part(split).starts.back(); }

  /// Row `index` of a split, in the order of the text or of packing.
  void row(data_split split, std::int64_t index, packed_row& to) const {
    const documents_of& p = part(split);
    expect(index >= 0 && index < p.rows, "byte_dataset::row", "index", numbered{"0 to ", p.rows - 1}, index);
    to.tokens.clear(), to.targets.clear(), to.second_targets.clear(), to.positions.clear();
    to.offsets.assign(1, 0);
    if (options_.packing == row_packing::windows) {
      const std::int64_t begin = index * options_.row_tokens,
                         end = std::min(begin + options_.row_tokens, p.starts.back());
      auto d = static_cast<std::size_t>(std::upper_bound(p.starts.begin(), p.starts.end(), begin) -
                                        p.starts.begin() - 1);
      for (std::int64_t at = begin; at < end; ++d) {
        const std::int64_t stop = std::min(end, p.starts[d + 1]);
        append(p.documents[d], at - p.starts[d], stop - at, to);
        at = stop;
      }
    } else {
      const auto i = static_cast<std::size_t>(index);
      for (std::int64_t k = p.row_starts[i]; k < p.row_starts[i + 1]; ++k) {
        const piece& part_of = p.pieces[static_cast<std::size_t>(k)];
        append(p.documents[static_cast<std::size_t>(part_of.document)], part_of.begin, part_of.length, to);
      }
    }
  }

  /// The training row that comes after `position` others: every epoch has all rows, each in an order of its
  /// own that the seed fixes.
  void training_row(std::int64_t position, packed_row& to) const {
    expect(position >= 0, "byte_dataset::training_row", "position", "0 or more", position);
    const std::int64_t count = training_.rows;
    const auto epoch = static_cast<std::uint64_t>(position / count);
    row(data_split::training,
        shuffled_index(count, position % count, detail::splitmix64(options_.seed) + epoch), to);
  }

  /// Differs when the text or an option does that changes rows: to be compared before a run is continued.
  /// Reads about 64 Ki bytes at most, evenly spread.
  std::uint64_t fingerprint() const {
    std::uint64_t h = detail::fnv1a64(options_.separator);
    const auto mix = [&](std::uint64_t v) { h = detail::splitmix64(h ^ v); };
    mix(static_cast<std::uint64_t>(size()));
    mix(static_cast<std::uint64_t>(options_.row_tokens));
    mix(static_cast<std::uint64_t>(options_.packing));
    mix(static_cast<std::uint64_t>(static_cast<std::int64_t>(options_.begin_token)));
    mix(static_cast<std::uint64_t>(static_cast<std::int64_t>(options_.end_token)));
    mix(options_.seed);
    for (data_split s : {data_split::training, data_split::held_out}) {
      mix(static_cast<std::uint64_t>(rows(s)));
      mix(static_cast<std::uint64_t>(tokens(s)));
    }
    const std::int64_t step = std::max<std::int64_t>(1, size() >> 16);
    for (std::int64_t i = 0; i < size(); i += step)
      mix(static_cast<std::uint64_t>(bytes_[static_cast<std::size_t>(i)]));
    return h;
  }

 private:
  struct document {
    std::int64_t begin, length;  ///< in bytes
  };
  struct piece {
    std::int64_t document, begin, length;  ///< in tokens of the document
  };
  struct documents_of {
    std::vector<document> documents;
    std::vector<std::int64_t> starts = {0};      ///< inputs before each document, and of all
    std::vector<piece> pieces;                   ///< best_fit: of row 0, of row 1, ...
    std::vector<std::int64_t> row_starts = {0};  ///< best_fit: the first piece of each row
    std::int64_t rows = 0;
  };

  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size()); }
  const documents_of& part(data_split split) const {
    return split == data_split::training ? training_ : held_out_;
  }
  /// Tokens of a document that have a target.
  std::int64_t inputs(const document& d) const {
    return std::max<std::int64_t>(0, d.length + (options_.begin_token >= 0) + (options_.end_token >= 0) - 1);
  }
  /// Token i of a document, -1 behind its end.
  std::int32_t token(const document& d, std::int64_t i) const {
    if (options_.begin_token >= 0 && i-- == 0) return options_.begin_token;
    if (i < d.length) return static_cast<std::int32_t>(bytes_[static_cast<std::size_t>(d.begin + i)]);
    return i == d.length && options_.end_token >= 0 ? options_.end_token : -1;
  }
  void append(const document& d, std::int64_t begin, std::int64_t length, packed_row& to) const {
    for (std::int64_t i = begin; i < begin + length; ++i) {
      to.tokens.push_back(token(d, i));
      to.targets.push_back(token(d, i + 1));
      to.second_targets.push_back(token(d, i + 2));
    }
    to.offsets.push_back(static_cast<std::int64_t>(to.tokens.size()));
    to.positions.push_back(begin);
  }

  void find_documents() {
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
    std::vector<document> all;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = options_.separator.empty()
                                  ? text.size()
                                  : std::min(text.find(options_.separator, begin), text.size());
      if (end > begin)
        all.push_back({static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end - begin)});
      begin = end + std::max<std::size_t>(options_.separator.size(), 1);
    }
    const std::int64_t cut = cut_of(all);
    for (const document& d : all) {
      const std::int64_t end = d.begin + d.length, before = std::clamp(cut, d.begin, end);
      add(training_, {d.begin, before - d.begin});
      add(held_out_, {before, end - before});
    }
  }
  /// Where the held-out bytes begin: at the edge of a document if one is near, else between two characters.
  std::int64_t cut_of(const std::vector<document>& all) const {
    if (options_.held_out == 0) return size();
    auto cut = static_cast<std::int64_t>(double(size()) * (1 - options_.held_out));
    std::int64_t best = -1;
    for (const document& d : all)
      if (best < 0 || std::abs(d.begin - cut) < std::abs(best - cut)) best = d.begin;
    if (best > 0 && double(std::abs(best - cut)) <= double(size()) * options_.held_out / 2) return best;
    while (cut < size() && (std::to_integer<int>(bytes_[static_cast<std::size_t>(cut)]) & 0xC0) == 0x80)
      ++cut;
    return cut;
  }
  void add(documents_of& to, const document& d) const {
    if (d.length == 0 || inputs(d) == 0) return;
    to.documents.push_back(d);
    to.starts.push_back(to.starts.back() + inputs(d));
  }

  /// Longest pieces first, each into the fullest row that still has room for it.
  void pack(documents_of& p) const {
    const std::int64_t most = options_.row_tokens;
    if (options_.packing == row_packing::windows) {
      p.rows = (p.starts.back() + most - 1) / most;
      return;
    }
    std::vector<piece> pieces;
    for (std::size_t d = 0; d < p.documents.size(); ++d)
      for (std::int64_t at = 0, count = inputs(p.documents[d]); at < count; at += most)
        pieces.push_back({static_cast<std::int64_t>(d), at, std::min(most, count - at)});
    std::stable_sort(pieces.begin(), pieces.end(),
                     [](const piece& a, const piece& b) { return a.length > b.length; });
    std::vector<std::vector<piece>> packed;
    std::map<std::int64_t, std::vector<std::size_t>> by_room;  // rows by the tokens that still fit
    for (const piece& one : pieces) {
      auto place = by_room.lower_bound(one.length);
      std::size_t r = packed.size();
      std::int64_t room = most;
      if (place == by_room.end()) {
        packed.emplace_back();
      } else {
        room = place->first, r = place->second.back();
        place->second.pop_back();
        if (place->second.empty()) by_room.erase(place);
      }
      packed[r].push_back(one);
      if (room > one.length) by_room[room - one.length].push_back(r);
    }
    for (const auto& r : packed) {
      p.pieces.insert(p.pieces.end(), r.begin(), r.end());
      p.row_starts.push_back(static_cast<std::int64_t>(p.pieces.size()));
    }
    p.rows = static_cast<std::int64_t>(packed.size());
  }

  std::span<const std::byte> bytes_;
  byte_dataset_options options_;
  documents_of training_, held_out_;
};

}  // namespace dsv4
