// SPDX-License-Identifier: Apache-2.0
// A saved state continues as if it had never left memory; a file that is not exactly such a state is refused.
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/io/state_file.hpp>
#include <dsv4/model/transformer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

using namespace dsv4;
using dsv4::testing::contains;

namespace {

/// A folder of its own, gone afterwards.
struct scratch {
  std::filesystem::path folder;
  scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "dsv4-state-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
  }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  ~scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  std::filesystem::path operator/(const char* name) const { return folder / name; }
};

template <class T>
struct nano {
  using model = transformer<v4_nano, T>;
  using state = typename model::state;
  typename model::parameters weights;
  workspace w;
  std::vector<std::int32_t> tokens;

  nano() {
    initialise_by_name(weights);
    std::mt19937 random(3);
    for (int i = 0; i < 120; ++i) tokens.push_back(static_cast<std::int32_t>(random() % v4_nano.vocab_size));
  }
  /// Logits of the next `count` tokens, and of the drafts for all but the last of them.
  std::vector<T> extend(state& s, std::int64_t count, bool draft) {
    constexpr std::int64_t n = v4_nano.hyper_connection.hc_mult, width = v4_nano.hidden_size;
    const std::int64_t begin = s.length();
    std::vector<T> logits(static_cast<std::size_t>((draft ? 2 : 1) * count * v4_nano.vocab_size));
    std::vector<T> streams(static_cast<std::size_t>(count * n * width));
    const typename model::segment segment{&s, count};
    const matrix_view<T> rows(logits.data(), count, v4_nano.vocab_size);
    const tensor_view<T> x(streams.data(), count, n, width);
    model::forward(exec::reference{}, w, weights.views(),
                   {std::span(&segment, 1), {tokens.data() + begin, count}, logit_rows::all}, {rows, x});
    if (draft)
      model::draft(exec::reference{}, w, weights.views(),
                   {std::span(&segment, 1), {tokens.data() + begin + 1, count}, logit_rows::all}, x,
                   {matrix_view<T>(logits.data() + rows.size(), count, v4_nano.vocab_size), {}});
    return logits;
  }
};

template <class T>
void continues(std::int64_t length, std::int64_t rewind, bool draft) {
  nano<T> here;
  const scratch place;
  typename nano<T>::state state(rewind);
  here.extend(state, length, draft);
  io::save_state(place / "state", state);
  auto loaded = io::load_state<v4_nano, T>(place / "state");
  CHECK(loaded.length() == state.length());
  CHECK(loaded.mtp_length() == state.mtp_length());
  CHECK(loaded.rewind() == rewind);
  CHECK(loaded.bytes() == state.bytes());
  CHECK(loaded.shortest() == state.shortest());
  io::save_state(place / "again", loaded);
  const auto content = [&](const char* name) {
    std::ifstream file(place / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  CHECK(content("state") == content("again"));
  if (rewind > 0) {
    state.truncate(length - rewind);
    loaded.truncate(length - rewind);
  }
  for (const std::int64_t count : {1, 1, 9}) {
    const auto want = here.extend(state, count, draft);
    const auto got = here.extend(loaded, count, draft);
    CHECK(got == want);
  }
}

/// A state file with anything in it.
struct forged {
  std::vector<std::pair<std::string, std::string>> metadata;
  struct array {
    std::string name;
    io::dtype type;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::vector<array> arrays;

  explicit forged(const std::filesystem::path& from) {
    const io::safetensors_file file(from);
    for (const auto& entry : file.metadata()) metadata.push_back(entry);
    for (const auto& t : file.tensors()) {
      const auto bytes = file.bytes(t);
      arrays.push_back({t.name, t.dtype, t.shape, {bytes.begin(), bytes.end()}});
    }
  }
  std::string& operator[](const std::string& key) {
    for (auto& [name, value] : metadata)
      if (name == key) return value;
    return metadata.emplace_back(key, "").second;
  }
  void write(const std::filesystem::path& to) const {
    io::safetensors_writer writer;
    for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
    for (const auto& a : arrays) writer.add(a.name, a.type, a.shape, a.bytes);
    writer.write(to);
  }
};

}  // namespace

TEST_CASE("a loaded state continues bit for bit") {
  SECTION("empty") { continues<float>(0, 0, false); }
  SECTION("one token") { continues<float>(1, 0, false); }
  SECTION("within the window, with drafts") { continues<float>(21, 0, true); }
  SECTION("beyond the window, with drafts") { continues<float>(70, 0, true); }
  SECTION("rewound after loading") { continues<float>(70, 5, true); }
  SECTION("double") { continues<double>(45, 3, true); }
}

TEST_CASE("saving replaces the old state, and leaves it when it cannot write") {
  nano<float> here;
  const scratch place;
  nano<float>::state state;
  here.extend(state, 5, false);
  io::save_state(place / "state", state);
  here.extend(state, 5, false);
  io::save_state(place / "state", state);
  CHECK(io::load_state<v4_nano, float>(place / "state").length() == 10);
  CHECK_THROWS_AS(io::save_state(place / "no folder/state", state), io_error);
  CHECK_THROWS_AS((io::load_state<v4_nano, float>(place / "absent")), io_error);
}

TEST_CASE("a state of another model or scalar type is refused") {
  static constexpr model_config other = [] {
    model_config c = v4_nano;
    c.attention.rope.compress_rope_theta = 40000;
    return c;
  }();
  nano<float> here;
  const scratch place;
  nano<float>::state state;
  here.extend(state, 20, false);
  io::save_state(place / "state", state);
  CHECK_THROWS_WITH((io::load_state<other, float>(place / "state")), contains("'config'"));
  CHECK_THROWS_WITH((io::load_state<v4_nano, double>(place / "state")), contains("'dtype'"));
}

TEST_CASE("hostile state files are refused") {
  nano<float> here;
  const scratch place;
  nano<float>::state state(2);
  here.extend(state, 40, true);
  io::save_state(place / "state", state);
  const forged good(place / "state");
  const auto load = [&](const forged& f) {
    f.write(place / "forged");
    return io::load_state<v4_nano, float>(place / "forged");
  };
  REQUIRE(load(good).length() == 40);

  SECTION("metadata") {
    for (std::size_t i = 0; i < good.metadata.size(); ++i) {
      forged f = good;
      f.metadata.erase(f.metadata.begin() + static_cast<std::ptrdiff_t>(i));
      CHECK_THROWS_AS(load(f), format_error);
      for (const char* value :
           {"", "x", "-1", "44", "1e1", "40 ", "9223372036854775807", "99999999999999999999"}) {
        f = good;
        f.metadata[i].second = value;
        INFO(f.metadata[i].first << " = '" << value << "'");
        CHECK_THROWS_AS(load(f), format_error);
      }
    }
  }
  SECTION("lengths that agree with nothing in the file") {
    forged f = good;
    f["length"] = f["newest"] = "1099511627776";
    CHECK_THROWS_WITH(load(f), contains("tensor"));
    f = good;
    f["rewind"] = "1099511627776";  // its rings would take the memory
    CHECK_THROWS_WITH(load(f), contains("'rewind'"));
  }
  SECTION("arrays") {
    for (std::size_t i = 0; i < good.arrays.size(); ++i) {
      INFO(good.arrays[i].name);
      forged f = good;
      f.arrays.erase(f.arrays.begin() + static_cast<std::ptrdiff_t>(i));
      CHECK_THROWS_AS(load(f), format_error);
      f = good;
      f.arrays[i].name += "x";
      CHECK_THROWS_AS(load(f), format_error);
      f = good;
      f.arrays[i].type = io::dtype::i32;
      CHECK_THROWS_AS(load(f), format_error);
      f = good;
      std::swap(f.arrays[i].shape[0], f.arrays[i].shape[1]);
      if (f.arrays[i].shape != good.arrays[i].shape) CHECK_THROWS_AS(load(f), format_error);
      f = good;
      ++f.arrays[i].shape[0];
      f.arrays[i].bytes.resize(f.arrays[i].bytes.size() + 4 * static_cast<std::size_t>(f.arrays[i].shape[1]));
      CHECK_THROWS_AS(load(f), format_error);
    }
    forged f = good;
    f.arrays.push_back({"extra", io::dtype::f32, {1}, std::vector<std::byte>(4)});
    CHECK_THROWS_WITH(load(f), contains("tensors"));
  }
  SECTION("truncated") {
    const auto size = std::filesystem::file_size(place / "state");
    for (std::uintmax_t left :
         {std::uintmax_t{0}, std::uintmax_t{7}, std::uintmax_t{100}, size / 2, size - 1}) {
      std::filesystem::copy_file(place / "state", place / "cut",
                                 std::filesystem::copy_options::overwrite_existing);
      std::filesystem::resize_file(place / "cut", left);
      CHECK_THROWS_AS((io::load_state<v4_nano, float>(place / "cut")), format_error);
    }
  }
}
