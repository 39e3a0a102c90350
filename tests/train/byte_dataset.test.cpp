// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/train/byte_dataset.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <span>
#include <string>
#include <unistd.h>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
std::span<const std::byte> bytes_of(const std::string& s) { return std::as_bytes(std::span(s)); }

/// "<document 0>|<document 1>|..." with documents of many lengths, each of its own letters.
std::string text(int documents, std::uint64_t seed = 1) {
  std::string all;
  for (int d = 0; d < documents; ++d) {
    if (d) all += '|';
    const auto length = static_cast<int>(dsv4::detail::splitmix64(seed + static_cast<std::uint64_t>(d)) % 60);
    for (int i = 0; i < length; ++i) all += static_cast<char>('a' + (d + i) % 26);
  }
  return all;
}

/// The row's pieces as text: ^ begins, $ ends a document; the target of the last token included.
std::vector<std::string> pieces(const packed_row& r) {
  std::vector<std::string> all;
  const auto letter = [](std::int32_t t) { return t == 256 ? '^' : t == 257 ? '$' : static_cast<char>(t); };
  for (std::size_t d = 0; d + 1 < r.offsets.size(); ++d) {
    all.emplace_back();
    for (auto i = static_cast<std::size_t>(r.offsets[d]); i < static_cast<std::size_t>(r.offsets[d + 1]); ++i)
      all.back() += letter(r.tokens[i]);
    all.back() += letter(r.targets[static_cast<std::size_t>(r.offsets[d + 1]) - 1]);
  }
  return all;
}

void check_row(const packed_row& r, std::int64_t most) {
  REQUIRE(r.tokens.size() == r.targets.size());
  REQUIRE(r.tokens.size() == r.second_targets.size());
  REQUIRE(r.offsets.front() == 0);
  REQUIRE(r.offsets.back() == static_cast<std::int64_t>(r.tokens.size()));
  REQUIRE(r.positions.size() + 1 == r.offsets.size());
  REQUIRE(!r.tokens.empty());
  REQUIRE(r.offsets.back() <= most);
  for (std::size_t d = 0; d + 1 < r.offsets.size(); ++d) {
    REQUIRE(r.offsets[d] < r.offsets[d + 1]);
    for (auto i = static_cast<std::size_t>(r.offsets[d]); i < static_cast<std::size_t>(r.offsets[d + 1]);
         ++i) {
      REQUIRE(r.targets[i] >= 0);
      const bool last = static_cast<std::int64_t>(i) + 1 == r.offsets[d + 1];
      if (!last) {  // a token's target is the next token, and so on
        REQUIRE(r.targets[i] == r.tokens[i + 1]);
        REQUIRE(r.second_targets[i] == r.targets[i + 1]);
      }
      REQUIRE((r.second_targets[i] == -1) == (r.targets[i] == 257));
      REQUIRE((r.positions[d] == 0) == (r.tokens[static_cast<std::size_t>(r.offsets[d])] == 256));
    }
  }
}
}  // namespace

TEST_CASE("byte_dataset: a text of three documents, by hand") {
  const std::string s = "abc||de|fghijk";
  for (row_packing packing : {row_packing::best_fit, row_packing::windows}) {
    const byte_dataset data(bytes_of(s),
                            {.row_tokens = 6, .separator = "|", .packing = packing, .held_out = 0});
    CHECK(data.documents(data_split::training) == 3);  // the empty one is none
    CHECK(data.tokens(data_split::training) == 4 + 3 + 7);
    CHECK(data.rows(data_split::training) == 3);
    CHECK(data.rows(data_split::held_out) == 0);
    std::vector<std::vector<std::string>> rows;
    packed_row r;
    for (std::int64_t i = 0; i < 3; ++i) {
      data.row(data_split::training, i, r);
      check_row(r, 6);
      rows.push_back(pieces(r));
    }
    using strings = std::vector<std::string>;
    if (packing == row_packing::best_fit) {
      // Pieces of 6, 4, 3 and 1 tokens; the last goes where it leaves least room.
      CHECK(rows[0] == strings{"^fghijk"});
      CHECK(rows[1] == strings{"^abc$", "k$"});
      CHECK(rows[2] == strings{"^de$"});
    } else {
      CHECK(rows[0] == strings{"^abc$", "^de"});
      CHECK(rows[1] == strings{"e$", "^fghij"});
      CHECK(rows[2] == strings{"jk$"});
    }
  }
}

TEST_CASE("byte_dataset: every token is an input exactly once, held out or not") {
  const std::string s = text(300);
  for (row_packing packing : {row_packing::best_fit, row_packing::windows})
    for (std::int64_t most : {1, 7, 32, 100000})
      for (double held_out : {0.0, 0.1}) {
        const byte_dataset data(
            bytes_of(s), {.row_tokens = most, .separator = "|", .packing = packing, .held_out = held_out});
        std::string seen;
        std::int64_t tokens = 0;
        packed_row r;
        for (data_split split : {data_split::training, data_split::held_out}) {
          std::int64_t here = 0;
          for (std::int64_t i = 0; i < data.rows(split); ++i) {
            data.row(split, i, r);
            check_row(r, most);
            here += r.offsets.back();
            if (packing == row_packing::windows && i + 1 < data.rows(split))
              REQUIRE(r.offsets.back() == most);
            for (std::int32_t t : r.tokens)
              if (t < 256) seen += static_cast<char>(t);
          }
          CHECK(here == data.tokens(split));
          tokens += here;
        }
        std::string all = s;
        std::erase(all, '|');
        std::sort(all.begin(), all.end());
        std::sort(seen.begin(), seen.end());
        CHECK(seen == all);  // the last byte of a document is an input too: its target is the end token
        CHECK(tokens == static_cast<std::int64_t>(all.size()) + data.documents(data_split::training) +
                            data.documents(data_split::held_out));
      }
}

TEST_CASE("byte_dataset: best fit keeps documents whole and rows full") {
  const std::string s = text(2000, 9);
  const byte_dataset data(bytes_of(s), {.row_tokens = 128, .separator = "|", .held_out = 0});
  packed_row r;
  for (std::int64_t i = 0; i < data.rows(data_split::training); ++i) {
    data.row(data_split::training, i, r);
    for (const std::string& piece : pieces(r)) {
      REQUIRE(piece.front() == '^');
      REQUIRE(piece.back() == '$');
    }
  }
  // No packing has fewer rows than tokens / 128; many short documents leave almost no room.
  CHECK(data.rows(data_split::training) <= data.tokens(data_split::training) / 128 * 1.01 + 2);
}

TEST_CASE("byte_dataset: the held-out part begins at a document if one is near") {
  const std::string s = std::string(900, 'x') + "|" + std::string(110, 'y');  // 901 of 1011 bytes
  const auto held = [&](const std::string& t, double share) {
    const byte_dataset data(bytes_of(t), {.row_tokens = 4096, .separator = "|", .held_out = share});
    packed_row r;
    std::string all;
    for (std::int64_t i = 0; i < data.rows(data_split::held_out); ++i) {
      data.row(data_split::held_out, i, r);
      for (std::int32_t v : r.tokens)
        if (v < 256) all += static_cast<char>(v);
    }
    return all;
  };
  CHECK(held(s, 0.1) == std::string(110, 'y'));
  CHECK(held(s, 0.3) == std::string(193, 'x') + std::string(110, 'y'));  // inside: none is near 0.7
  std::string accents;
  for (int i = 0; i < 100; ++i) accents += "\xC3\xA9";  // two bytes a character
  for (double share : {0.1, 0.101, 0.105, 0.11}) CHECK((held(accents, share).size() % 2) == 0);
}

TEST_CASE("byte_dataset: the order is shuffled anew every epoch and is a function of the position") {
  const std::string s = text(400, 3);
  const byte_dataset_options options{.row_tokens = 64, .separator = "|", .seed = 11};
  const byte_dataset data(bytes_of(s), options), again(bytes_of(s), options);
  const std::int64_t rows = data.rows(data_split::training);
  REQUIRE(rows > 50);
  packed_row a, b;
  std::vector<std::vector<std::int32_t>> epochs[2];
  std::map<std::vector<std::int32_t>, int> times;
  for (std::int64_t position = 0; position < 2 * rows; ++position) {
    data.training_row(position, a);
    epochs[position / rows].push_back(a.tokens);
    ++times[a.tokens];
  }
  CHECK(epochs[0] != epochs[1]);
  std::multiset<std::vector<std::int32_t>> first(epochs[0].begin(), epochs[0].end()),
      second(epochs[1].begin(), epochs[1].end());
  CHECK(first == second);
  for (std::int64_t position : {rows + 3, std::int64_t{0}, rows - 1, 2 * rows - 1}) {  // resumed anywhere
    again.training_row(position, b);
    CHECK(b.tokens == epochs[position / rows][static_cast<std::size_t>(position % rows)]);
  }
  auto other = options;
  other.seed = 12;
  byte_dataset(bytes_of(s), other).training_row(0, b);
  data.training_row(0, a);
  CHECK(a.tokens != b.tokens);
}

TEST_CASE("byte_dataset: fingerprints") {
  std::string s = text(100);
  byte_dataset_options o{.row_tokens = 64, .separator = "|"};
  const auto print = [&] { return byte_dataset(bytes_of(s), o).fingerprint(); };
  const auto before = print();
  CHECK(print() == before);
  std::set<std::uint64_t> all{before};
  o.seed = 1;
  all.insert(print());
  o.row_tokens = 65;
  all.insert(print());
  o.packing = row_packing::windows;
  all.insert(print());
  o.end_token = -1;
  all.insert(print());
  s[s.size() / 2] = '#';
  all.insert(print());
  CHECK(all.size() == 6);
}

TEST_CASE("byte_dataset: without begin and end tokens, and from a mapped file") {
  const auto path =
      std::filesystem::temp_directory_path() / ("dsv4_byte_dataset" + std::to_string(::getpid()));
  std::ofstream(path, std::ios::binary) << "hello, world";
  const io::mapped_file file(path);
  const byte_dataset data(file.bytes(),
                          {.row_tokens = 100, .begin_token = -1, .end_token = -1, .held_out = 0});
  packed_row r;
  data.row(data_split::training, 0, r);
  CHECK(std::string(r.tokens.begin(), r.tokens.end()) == "hello, worl");
  CHECK(r.targets.back() == 'd');
  CHECK(r.second_targets.back() == -1);
  CHECK(r.positions == std::vector<std::int64_t>{0});
  std::filesystem::remove(path);
}

TEST_CASE("byte_dataset: what it refuses") {
  const std::string s = "abc";
  CHECK_THROWS_WITH(byte_dataset(bytes_of(s), {.row_tokens = 0}),
                    contains("row_tokens: expected at least 1, found 0"));
  CHECK_THROWS_WITH(byte_dataset(bytes_of(s), {.held_out = 1}), contains("held_out"));
  CHECK_THROWS_WITH(byte_dataset({}, {.held_out = 0}), contains("text to train on"));
  CHECK_THROWS_WITH(byte_dataset(bytes_of(s), {.begin_token = -1, .end_token = -1, .held_out = 0.01}),
                    contains("text to hold out"));
  const byte_dataset data(bytes_of(s), {.held_out = 0});
  packed_row r;
  CHECK_THROWS_WITH(data.row(data_split::training, 1, r),
                    contains("byte_dataset::row: index: expected 0 to 0, found 1"));
  CHECK_THROWS_AS(data.training_row(-1, r), contract_error);
}
