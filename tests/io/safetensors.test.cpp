// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/error.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/io/safetensors.hpp>
#include <dsv4/io/safetensors_index.hpp>
#include <dsv4/io/safetensors_writer.hpp>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;
namespace io = dsv4::io;
using dsv4::contract_error;
using dsv4::format_error;
using dsv4::io_error;
using dsv4::testing::contains;

/// A folder of its own for one test; gone afterwards.
class scratch {
 public:
  scratch() {
    std::string name = (fs::temp_directory_path() / "dsv4-safetensors-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw io_error(name, "mkdtemp", "refused");
    folder_ = name;
  }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  ~scratch() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  [[nodiscard]] const fs::path& folder() const { return folder_; }
  [[nodiscard]] fs::path operator/(std::string_view name) const { return folder_ / name; }
  [[nodiscard]] std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}));
  }

 private:
  fs::path folder_;
};

std::vector<std::byte> iota_bytes(std::size_t count, unsigned first = 0) {
  std::vector<std::byte> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>((first + i) & 0xFFU);
  return out;
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

void spill(const fs::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
}

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::string length_field(std::uint64_t length) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>((length >> (8 * i)) & 0xFFU);
  return out;
}

/// A file of this header text and `data` zero bytes.
std::string file_of(std::string_view header, std::size_t data = 0) {
  return length_field(header.size()) + std::string(header) + std::string(data, '\0');
}

io::safetensors_header parse(std::string_view whole) {
  // An exact heap copy, so that a sanitizer sees any read past the end.
  const std::vector<char> copy(whole.begin(), whole.end());
  return io::parse_safetensors_header("evil.safetensors", std::as_bytes(std::span(copy)));
}

/// Asserts that `whole` is refused with a format_error that names the file, `item` and `text`.
void refused(std::string_view whole, const std::string& item, const std::string& text) {
  CAPTURE(item, text);
  REQUIRE_THROWS_AS(parse(whole), format_error);
  CHECK_THROWS_WITH(parse(whole), contains("evil.safetensors: " + item));
  CHECK_THROWS_WITH(parse(whole), contains(text));
}

/// The header entry of one tensor.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}";
}

struct named_bytes {
  std::string name;
  std::vector<std::byte> bytes;
};

/// Writes U8 vectors as one file.
void write_shard(const fs::path& path, const std::vector<named_bytes>& tensors) {
  io::safetensors_writer writer;
  for (const auto& t : tensors) {
    writer.add(t.name, io::dtype::u8, {static_cast<std::int64_t>(t.bytes.size())}, t.bytes);
  }
  writer.write(path);
}

}  // namespace

TEST_CASE("dtype: names and bits follow the safetensors format", "[io]") {
  CHECK(io::dtype_name(io::dtype::boolean) == "BOOL");
  CHECK(io::dtype_name(io::dtype::f8_e8m0) == "F8_E8M0");
  for (const auto& row : io::detail::dtype_rows) {
    CAPTURE(row.name);
    CHECK(io::dtype_name(row.type) == row.name);
    CHECK(io::dtype_bits(row.type) == row.bits);
    CHECK(io::dtype_from_name(row.name) == row.type);
  }
  CHECK_FALSE(io::dtype_from_name("f32").has_value());
  CHECK_FALSE(io::dtype_from_name("").has_value());

  const std::vector<std::int64_t> odd{3}, even{2, 3}, gone{std::int64_t{1} << 62, 0}, negative{-1};
  CHECK(io::tensor_bytes(io::dtype::f4, even) == 3U);
  CHECK_FALSE(io::tensor_bytes(io::dtype::f4, odd).has_value());
  CHECK(io::tensor_bytes(io::dtype::f64, {}) == 8U);
  CHECK(io::tensor_bytes(io::dtype::boolean, odd) == 3U);
  CHECK_FALSE(io::tensor_bytes(io::dtype::f32, gone).has_value());
  CHECK_FALSE(io::tensor_bytes(io::dtype::u8, negative).has_value());
}

TEST_CASE("mapped_file: bytes, emptiness, moves and refusals", "[io]") {
  const scratch dir;
  spill(dir / "some", "hello");
  spill(dir / "none", "");
  for (const auto access : {io::file_access::map, io::file_access::read}) {
    io::mapped_file file(dir / "some", access);
    REQUIRE(file.bytes().size() == 5);
    CHECK(std::memcmp(file.bytes().data(), "hello", 5) == 0);
    CHECK(file.path() == dir / "some");

    const auto* const where = file.bytes().data();
    io::mapped_file moved(std::move(file));
    CHECK(moved.bytes().data() == where);
    moved = io::mapped_file(dir / "none", access);
    CHECK(moved.bytes().empty());

    CHECK_THROWS_AS(io::mapped_file(dir / "absent", access), io_error);
    CHECK_THROWS_WITH(io::mapped_file(dir / "absent", access), contains("absent: open"));
    CHECK_THROWS_AS(io::mapped_file(dir.folder(), access), io_error);
    CHECK_THROWS_WITH(io::mapped_file(dir.folder(), access), contains("not a regular file"));
  }
}

TEST_CASE("safetensors: what the writer wrote, the reader reads", "[io]") {
  const scratch dir;
  const auto path = dir / "round.safetensors";
  struct sample {
    std::string name;
    io::dtype type;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::vector<sample> samples;
  unsigned seed = 1;
  for (const auto& row : io::detail::dtype_rows) {
    const std::vector<std::int64_t> shape{2, 3};
    samples.push_back({"layers." + std::string(row.name), row.type, shape,
                       iota_bytes(static_cast<std::size_t>(6 * row.bits / 8), seed++)});
  }
  samples.push_back({"scalar", io::dtype::f32, {}, iota_bytes(4)});
  samples.push_back({"empty", io::dtype::bf16, {0, 7}, {}});
  samples.push_back({"", io::dtype::i8, {1}, iota_bytes(1)});
  samples.push_back({"quote\" back\\slash \n \xC3\xA9", io::dtype::i8, {1}, iota_bytes(1)});

  io::safetensors_writer writer;
  writer.set_metadata("format", "old");
  writer.set_metadata("a \"key\"", "line\nbreak");
  writer.set_metadata("format", "pt");
  for (const auto& s : samples) writer.add(s.name, s.type, s.shape, s.bytes);
  writer.write(path);

  for (const auto access : {io::file_access::map, io::file_access::read}) {
    io::safetensors_file opened(path, access);
    const io::safetensors_file file(std::move(opened));
    CHECK(file.path() == path);
    CHECK(file.metadata() ==
          std::map<std::string, std::string>{{"format", "pt"}, {"a \"key\"", "line\nbreak"}});
    REQUIRE(file.tensors().size() == samples.size());
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const auto& s = samples[i];
      CAPTURE(s.name);
      CHECK(file.tensors()[i].name == s.name);
      const auto& info = file.at(s.name);
      CHECK(file.find(s.name) == &info);
      CHECK(info.dtype == s.type);
      CHECK(info.shape == s.shape);
      CHECK(same(file.bytes(info), s.bytes));
    }
    CHECK(file.find("absent") == nullptr);
    CHECK_THROWS_AS(file.at("absent"), format_error);
    CHECK_THROWS_WITH(file.at("absent"), contains("round.safetensors: tensor 'absent'"));
    io::tensor_info foreign;
    foreign.end = std::uint64_t{1} << 40;
    CHECK_THROWS_AS(file.bytes(foreign), contract_error);
  }

  SECTION("the same calls give the same bytes, and the data starts on 8 bytes") {
    writer.write(dir / "again.safetensors");
    const auto bytes = slurp(path);
    CHECK(bytes == slurp(dir / "again.safetensors"));
    CHECK(parse(bytes).data_offset % 8 == 0);
    CHECK(dir.files() == 2);  // no ".tmp" stays
  }
  SECTION("tensors may come from the file that is replaced") {
    const io::safetensors_file old(path);
    io::safetensors_writer copy;
    copy.add("kept", io::dtype::f64, {2, 3}, old.bytes(old.at("layers.F64")));
    copy.write(path);
    const io::safetensors_file now(path);
    CHECK(same(now.bytes(now.at("kept")), samples[0].bytes));
    CHECK(same(old.bytes(old.at("scalar")), iota_bytes(4)));
  }
  SECTION("nothing at all is a valid file") {
    io::safetensors_writer().write(path);
    const io::safetensors_file file(path);
    CHECK(file.tensors().empty());
    CHECK(file.metadata().empty());
  }
}

TEST_CASE("safetensors: exact bytes of a small file", "[io]") {
  const scratch dir;
  const auto data = iota_bytes(4, 'A');
  io::safetensors_writer writer;
  writer.set_metadata("k", "v");
  writer.add("w", io::dtype::bf16, {1, 2}, data);
  writer.write(dir / "small");
  std::string header =
      R"({"__metadata__":{"k":"v"},"w":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}})";
  header.append((8 - header.size() % 8) % 8, ' ');
  CHECK(slurp(dir / "small") == length_field(header.size()) + header + "ABCD");
}

TEST_CASE("safetensors_writer: refuses what it could not write truthfully", "[io]") {
  const auto four = iota_bytes(4);
  io::safetensors_writer writer;
  writer.add("w", io::dtype::u8, {4}, four);
  const auto fails = [&](const std::string& name, io::dtype type, const std::vector<std::int64_t>& shape,
                         const std::string& text) {
    CAPTURE(name);
    CHECK_THROWS_AS(writer.add(name, type, shape, four), contract_error);
    CHECK_THROWS_WITH(writer.add(name, type, shape, four), contains(text));
  };
  fails("w", io::dtype::u8, {4}, "a second tensor 'w'");
  fails("__metadata__", io::dtype::u8, {4}, "__metadata__");
  fails("x", io::dtype::u8, {5}, "expected 5 bytes for 'x' of U8 [5], found 4 bytes");
  fails("x", io::dtype::u8, {-4}, "U8 [-4]");
  fails("x", io::dtype::f4, {7}, "F4 [7]");
  fails("x", io::dtype::u8, {std::int64_t{1} << 62, 16}, "fit 64 bits");
  fails("x", io::dtype::u8, std::vector<std::int64_t>(65, 1), "at most 64 axes");
  fails("\xFF", io::dtype::u8, {4}, "UTF-8");
  CHECK_THROWS_AS(writer.set_metadata("k", "\xC3"), contract_error);
}

TEST_CASE("safetensors_writer: a failed write leaves the old file and no other", "[io]") {
  const scratch dir;
  const auto path = dir / "model.safetensors";
  const auto small = iota_bytes(16);
  write_shard(path, {{"w", small}});
  const auto before = slurp(path);

  SECTION("the disk is full") {
    // A file size limit stands in for it: write() fails halfway.
    rlimit old{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit tight{1024, old.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &tight) == 0);
    std::string message;
    try {
      write_shard(path, {{"w", iota_bytes(100'000)}});
    } catch (const io_error& failure) {
      message = failure.what();
    }
    ::setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, handler);
    CHECK(message.find("model.safetensors.tmp: write: ") != std::string::npos);
    CHECK(slurp(path) == before);
    CHECK(dir.files() == 1);
  }
  SECTION("the name is a folder") {
    fs::create_directory(dir / "folder");
    CHECK_THROWS_AS(write_shard(dir / "folder", {{"w", small}}), io_error);
    CHECK_THROWS_WITH(write_shard(dir / "folder", {{"w", small}}), contains("rename"));
    CHECK(dir.files() == 2);
  }
  SECTION("the folder is missing") {
    CHECK_THROWS_AS(write_shard(dir / "absent/model.safetensors", {{"w", small}}), io_error);
    CHECK_THROWS_WITH(write_shard(dir / "absent/model.safetensors", {{"w", small}}), contains("open"));
  }
}

TEST_CASE("hostile files: lying lengths and truncation", "[io][hostile]") {
  refused("", "header length", "0 bytes");
  refused("1234567", "header length", "7 bytes");
  refused(length_field(0), "header", "no text");
  refused(length_field(1), "header length", "found 1");
  refused(length_field(99'999'999) + "{}", "header length",
          "at most the 2 bytes that follow, found 99999999");
  refused(length_field(100'000'001) + "{}", "header length", "at most 100000000 bytes, found 100000001");
  refused(length_field(~std::uint64_t{0}) + "{}", "header length", "18446744073709551615");
  refused(length_field(~std::uint64_t{0} - 7) + "{}", "header length", "18446744073709551608");

  const auto whole = file_of("{" + entry("w", "F32", "[2]", "[0,8]") + "}", 8);
  CHECK(parse(whole).tensors.size() == 1);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    CHECK_THROWS_AS(parse(whole.substr(0, size)), format_error);
  }
}

TEST_CASE("hostile files: a header of more than 100 MB, present on disk", "[io][hostile]") {
  const scratch dir;
  const auto path = dir / "big.safetensors";
  spill(path, length_field(100'000'001) + "{}");
  fs::resize_file(path, 100'000'100);  // sparse: takes no room
  CHECK_THROWS_AS(io::safetensors_file(path), format_error);
  CHECK_THROWS_WITH(io::safetensors_file(path),
                    contains("big.safetensors: header length: expected at most 100"));
}

TEST_CASE("hostile files: headers that are not the JSON of the format", "[io][hostile]") {
  refused(file_of("[]"), "header", "a JSON object");
  refused(file_of("null"), "header", "'null'");
  refused(file_of(" {}"), "header", "' {}'");
  refused(file_of("\xEF\xBB\xBF{}"), "header", "a JSON object");
  refused(file_of("{"), "header", "JSON");
  refused(file_of("{} x"), "header", "JSON");
  refused(file_of("{}{}"), "header", "JSON");
  refused(file_of(std::string("{}\0{", 4)), "header", "a NUL byte");
  refused(file_of("{\"\xFF\":1}"), "header", "JSON");
  refused(file_of("{\"w\":1e999}"), "header", "JSON");
  CHECK(parse(file_of("{}      ")).tensors.empty());

  SECTION("nesting as deep as the file is long") {
    std::string deep(1'000'000, '[');
    refused(file_of("{\"w\":" + deep), "tensor 'w'", "an array");
    refused(file_of("{\"w\":{\"shape\":" + deep), "tensor 'w'", "found an array");
    std::string objects;
    for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
    refused(file_of(objects), "tensor 'a'", "only the keys");
    refused(file_of("{\"__metadata__\":" + objects), "__metadata__", "found an object");
  }
  SECTION("messages stay short and printable") {
    const std::string name(1'000'000, 'n');
    try {
      (void)parse(file_of("{\"" + name + "\\u001b[2J\":7}"));
      FAIL("accepted");
    } catch (const format_error& failure) {
      CHECK(std::string_view(failure.what()).size() < 500);
    }
    refused(file_of("{\"\\u001b[2J\":7}"), "tensor '\\x1b[2J'", "the number 7");
  }
}

TEST_CASE("hostile files: duplicate, missing and extra keys", "[io][hostile]") {
  const auto w = entry("w", "U8", "[1]", "[0,1]");
  refused(file_of("{" + w + "," + w + "}", 1), "tensor 'w'", "a duplicate");
  refused(file_of("{" + w + "," + entry("w", "U8", "[1]", "[1,2]") + "}", 2), "tensor 'w'", "a duplicate");
  refused(file_of("{" + w + "," + entry("\\u0077", "U8", "[1]", "[1,2]") + "}", 2), "tensor 'w'",
          "a duplicate");
  refused(file_of(R"({"__metadata__":{},"__metadata__":{}})"), "header", "a duplicate key '__metadata__'");
  refused(file_of(R"({"__metadata__":{"a":"1","a":"1"}})"), "__metadata__", "a duplicate key 'a'");
  refused(file_of(R"({"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "tensor 'w'",
          "a duplicate key 'dtype'");
  refused(file_of(R"({"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1), "tensor 'w'",
          "a duplicate key 'shape'");

  refused(file_of(R"({"w":{}})"), "tensor 'w'", "the key dtype, found none");
  refused(file_of(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1), "tensor 'w'",
          "the key shape, found none");
  refused(file_of(R"({"w":{"dtype":"U8","shape":[1]}})", 1), "tensor 'w'",
          "the key data_offsets, found none");
  refused(file_of(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":0}})", 1), "tensor 'w'",
          "the key 'x'");
}

TEST_CASE("hostile files: values of the wrong type", "[io][hostile]") {
  for (const std::string value : {"1", "-1", "1.5", "null", "true", "\"s\"", "[]"}) {
    CAPTURE(value);
    refused(file_of("{\"w\":" + value + "}"), "tensor 'w'", "expected an object");
    refused(file_of("{\"__metadata__\":" + value + "}"), "__metadata__", "expected an object");
  }
  for (const std::string value : {"1", "-1", "1.5", "null", "true", "{}", "[]"}) {
    CAPTURE(value);
    refused(file_of("{\"w\":{\"dtype\":" + value + "}}"), "tensor 'w'", "a string for dtype");
    refused(file_of("{\"__metadata__\":{\"k\":" + value + "}}"), "__metadata__", "a string for the key 'k'");
  }
  for (const std::string value : {"1", "null", "\"s\"", "{}", "false"}) {
    CAPTURE(value);
    refused(file_of("{\"w\":{\"shape\":" + value + "}}"), "tensor 'w'", "an array for shape");
    refused(file_of("{\"w\":{\"data_offsets\":" + value + "}}"), "tensor 'w'", "an array for data_offsets");
  }
  for (const std::string value :
       {"-1", "1.0", "null", "\"s\"", "{}", "[]", "false", "18446744073709551616", "1e3"}) {
    CAPTURE(value);
    refused(file_of("{\"w\":{\"shape\":[1," + value + "]}}"), "tensor 'w'", "a shape of whole numbers");
    refused(file_of("{\"w\":{\"data_offsets\":[0," + value + "]}}"), "tensor 'w'", "two whole numbers");
  }
  refused(file_of("{\"w\":{\"data_offsets\":[]}}"), "tensor 'w'", "fewer than two numbers");
  refused(file_of("{\"w\":{\"data_offsets\":[0]}}"), "tensor 'w'", "fewer than two numbers");
  refused(file_of("{\"w\":{\"data_offsets\":[0,0,0]}}"), "tensor 'w'", "more than two numbers");
  for (const std::string name : {"F31", "f32", "", "F6_E2M3", "complex"}) {
    refused(file_of("{" + entry("w", name, "[1]", "[0,1]") + "}", 1), "tensor 'w'",
            "expected a known dtype, found '" + name + "'");
  }
}

TEST_CASE("hostile files: shapes that overflow or disagree with their bytes", "[io][hostile]") {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                      std::size_t data) {
    return file_of(std::string("{") + entry("w", dtype, shape, offsets) + "}", data);
  };
  refused(one("U8", "[9223372036854775808]", "[0,0]", 0), "tensor 'w'", "the number 9223372036854775808");
  refused(one("U8", "[9223372036854775807]", "[0,0]", 0), "tensor 'w'", "fits 64 bits");
  // Both products are 0 modulo 2^64, which an unchecked multiplication would take for "no bytes".
  refused(one("U8", "[4294967296,4294967296]", "[0,0]", 0), "tensor 'w'", "fits 64 bits");
  refused(one("F64", "[2305843009213693952,8]", "[0,0]", 0), "tensor 'w'", "fits 64 bits");
  // The elements fit, their bits do not.
  refused(one("F32", "[576460752303423488]", "[0,0]", 0), "tensor 'w'", "fits 64 bits");
  // A zero axis does not excuse the others, whatever the order.
  refused(one("F32", "[0,4294967296,4294967296]", "[0,0]", 0), "tensor 'w'", "fits 64 bits");
  refused(one("F32", "[4294967296,4294967296,0]", "[0,0]", 0), "tensor 'w'", "fits 64 bits");
  refused(one("F4", "[3]", "[0,2]", 2), "tensor 'w'", "whole bytes");

  refused(one("F32", "[2]", "[0,4]", 4), "tensor 'w'",
          "expected 8 bytes for F32 [2], found 4 bytes at [0, 4]");
  refused(one("F32", "[]", "[0,8]", 8), "tensor 'w'", "expected 4 bytes for F32 []");
  refused(one("F32", "[0]", "[0,4]", 4), "tensor 'w'", "expected 0 bytes");
  std::string ones = "[1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  refused(one("U8", ones + "]", "[0,1]", 1), "tensor 'w'", "more than 64 axes");
}

TEST_CASE("hostile files: data spans out of range, overlapping or with holes", "[io][hostile]") {
  const auto a = entry("a", "U8", "[4]", "[0,4]");
  const auto two = [&](const std::string& second) { return "{" + a + "," + second + "}"; };
  refused(file_of("{" + entry("w", "U8", "[1]", "[1,0]") + "}", 1), "tensor 'w'",
          "rising order, found [1, 0]");
  refused(file_of("{" + entry("w", "U8", "[1]", "[18446744073709551615,0]") + "}", 1), "tensor 'w'",
          "rising");
  refused(file_of("{" + entry("w", "U8", "[2]", "[0,2]") + "}", 1), "tensor 'w'", "within 1 bytes");
  refused(file_of("{" + entry("w", "U8", "[1]", "[18446744073709551614,18446744073709551615]") + "}", 1),
          "tensor 'w'", "within 1 bytes");

  refused(file_of(two(entry("b", "U8", "[4]", "[2,6]")), 6), "tensor 'b'", "an overlap: data from byte 2");
  refused(file_of(two(entry("b", "U8", "[4]", "[0,4]")), 4), "tensor 'b'", "an overlap");
  refused(file_of(two(entry("b", "U8", "[2]", "[1,3]")), 4), "tensor 'b'", "an overlap");
  refused(file_of(two(entry("b", "U8", "[0]", "[2,2]")), 4), "tensor 'b'", "an overlap");
  refused(file_of(two(entry("b", "U8", "[1]", "[5,6]")), 6), "tensor 'b'", "a hole: data from byte 5");
  refused(file_of("{" + entry("w", "U8", "[1]", "[1,2]") + "}", 2), "tensor 'w'", "a hole");
  refused(file_of("{" + a + "}", 5), "data", "4 covered bytes, with tensor 'a' last");
  refused(file_of("{}", 1), "data", "with no tensor");

  // The header may list tensors in any order; empty ones fit between others.
  const auto header = parse(file_of(
      "{" + entry("z", "U8", "[1]", "[4,5]") + "," + a + "," + entry("e", "U8", "[0]", "[4,4]") + "}", 5));
  REQUIRE(header.tensors.size() == 3);
  CHECK(header.tensors[0].name == "a");
  CHECK(header.tensors[1].name == "e");
  CHECK(header.tensors[2].name == "z");
}

TEST_CASE("hostile files: ten thousand random mutations never crash the reader", "[io][hostile]") {
  const std::string valid =
      file_of(R"({"__metadata__":{"format":"pt"},)" + entry("embed.weight", "BF16", "[4,3]", "[0,24]") + "," +
                  entry("experts.0.w1", "F4", "[2,8]", "[24,32]") + "," +
                  entry("experts.0.w1.scale", "F8_E8M0", "[2,1]", "[32,34]") + "," +
                  entry("bias", "F32", "[0]", "[34,34]") + "}   ",
              34);
  REQUIRE(parse(valid).tensors.size() == 4);
  std::mt19937 random(20'240'607);
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random()) % bound; };
  constexpr std::string_view telling = "{}[]\",:0123456789-eE.\\ \0\xFF";
  std::size_t accepted = 0;
  for (int round = 0; round < 10'000; ++round) {
    std::string bytes = valid;
    for (std::size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
      const auto at = below(bytes.size());
      switch (below(6)) {
        case 0:
          bytes[at] = static_cast<char>(below(256));
          break;
        case 1:
          bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1U << below(8)));
          break;
        case 2:
          bytes[at] = telling[below(telling.size())];
          break;
        case 3:
          bytes.insert(at, 1, telling[below(telling.size())]);
          break;
        case 4:
          bytes.erase(at, 1 + below(4));
          break;
        default:
          bytes.insert(at, valid.substr(below(valid.size()), below(40)));
          break;
      }
    }
    try {
      const auto header = parse(bytes);
      ++accepted;
      std::uint64_t covered = 0;
      for (const auto& info : header.tensors) {
        if (info.begin != covered || info.end < info.begin) FAIL("round " << round << ": a bad span");
        covered = info.end;
      }
      if (header.data_offset + covered != bytes.size()) FAIL("round " << round << ": bytes left over");
    } catch (const format_error&) {
      // Refused, as most are; any other exception ends the test.
    }
  }
  CHECK(accepted > 0);  // mutations of data bytes and names alone
  CHECK(accepted < 10'000);
}

TEST_CASE("safetensors_checkpoint: a single file and a sharded folder read alike", "[io]") {
  const scratch dir;
  const auto x = iota_bytes(5), y = iota_bytes(7, 50), z = iota_bytes(3, 99);
  SECTION("single") { write_shard(dir / "model.safetensors", {{"z", z}, {"x", x}, {"y", y}}); }
  SECTION("sharded") {
    write_shard(dir / "model-1.safetensors", {{"z", z}, {"x", x}});
    write_shard(dir / "model-2.safetensors", {{"y", y}});
    spill(dir / "model.safetensors.index.json",
          R"({"metadata":{"total_size":1,"deep":[[{"a":[null,true,-1,1.5]}]]},"weight_map":{)"
          R"("x":"model-1.safetensors","y":"model-2.safetensors","z":"model-1.safetensors"},"weight":"x"})");
  }
  SECTION("sharded, one shard under the single file's name") {
    write_shard(dir / "model.safetensors", {{"z", z}, {"x", x}, {"y", y}});
    spill(dir / "model.safetensors.index.json",
          R"({"weight_map":{"x":"model.safetensors","y":"model.safetensors","z":"model.safetensors"}})");
  }
  for (const auto access : {io::file_access::map, io::file_access::read}) {
    io::safetensors_checkpoint opened(dir.folder(), access);
    const io::safetensors_checkpoint checkpoint(std::move(opened));
    CHECK(checkpoint.path() == dir.folder());
    CHECK(same(checkpoint.bytes("x"), x));
    CHECK(same(checkpoint.bytes(checkpoint.at("y")), y));
    CHECK(same(checkpoint.bytes("z"), z));
    CHECK(checkpoint.find("w") == nullptr);
    CHECK_THROWS_AS(checkpoint.at("w"), format_error);
    CHECK_THROWS_WITH(checkpoint.bytes("w"), contains("tensor 'w'"));
    CHECK(checkpoint.total_bytes() == 15);
    CHECK(checkpoint.tensor_count() == 3);
    CHECK(checkpoint.file_of("y").parent_path() == dir.folder());
    std::vector<std::string> order;
    checkpoint.for_each([&](const io::tensor_info& info, std::span<const std::byte> bytes) {
      order.push_back(info.name);
      CHECK(bytes.size() == info.size_bytes());
    });
    CHECK(order == std::vector<std::string>{"z", "x", "y"});
  }

  // Threads that race to the first access open the shards once and see the same bytes.
  const io::safetensors_checkpoint shared(dir.folder());
  std::array<const std::byte*, 4> seen{};
  std::vector<std::thread> threads;
  for (auto& slot : seen) threads.emplace_back([&shared, &slot] { slot = shared.bytes("x").data(); });
  for (auto& thread : threads) thread.join();
  CHECK(std::all_of(seen.begin(), seen.end(), [&](const std::byte* p) { return p == seen[0]; }));
}

TEST_CASE("hostile files: an index that disagrees with its shards", "[io][hostile]") {
  const scratch dir;
  const auto some = iota_bytes(4);
  write_shard(dir / "a.safetensors", {{"x", some}});
  write_shard(dir / "b.safetensors", {{"y", some}});
  const auto index = dir / "model.safetensors.index.json";
  const auto fails = [&](std::string_view text, const std::string& item, const std::string& why) {
    CAPTURE(text.substr(0, 200));
    spill(index, text);
    const auto open = [&] { (void)io::safetensors_checkpoint(dir.folder()).total_bytes(); };
    CHECK_THROWS_AS(open(), format_error);
    CHECK_THROWS_WITH(open(), contains("model.safetensors.index.json: " + item));
    CHECK_THROWS_WITH(open(), contains(why));
  };
  const auto map = [](const std::string& pairs) { return R"({"weight_map":{)" + pairs + "}}"; };

  SECTION("a shard is missing, found before any tensor is asked for") {
    spill(index, map(R"("x":"a.safetensors","y":"c.safetensors")"));
    CHECK_THROWS_AS(io::safetensors_checkpoint(dir.folder()), format_error);
    CHECK_THROWS_WITH(io::safetensors_checkpoint(dir.folder()), contains("shard 'c.safetensors'"));
  }
  SECTION("tensors are elsewhere") {
    fails(map(R"("x":"a.safetensors","w":"a.safetensors")"), "tensor 'w'",
          "in shard 'a.safetensors', found none");
    fails(map(R"("x":"a.safetensors","y":"a.safetensors")"), "tensor 'y'",
          "in shard 'a.safetensors', found none");
    fails(map(R"("x":"b.safetensors","y":"a.safetensors")"), "tensor 'x'",
          "found it in shard 'a.safetensors'");
    fails(map(R"("w":"a.safetensors")"), "tensor 'x'", "it only in shard 'a.safetensors'");
  }
  SECTION("two shards hold the same name") {
    write_shard(dir / "b.safetensors", {{"x", some}, {"y", some}});
    fails(map(R"("x":"a.safetensors","y":"b.safetensors")"), "tensor 'x'",
          "in shard 'a.safetensors' and shard 'b.safetensors'");
  }
  SECTION("shard names lead out of the folder") {
    for (const std::string name : {"../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "",
                                   "sub\\\\a.safetensors", "a\\u0000b", "a..safetensors"}) {
      CAPTURE(name);
      fails(map(R"("x":")" + name + "\""), "tensor 'x'", "the name of a file in the same folder");
    }
  }
  SECTION("the index is not the JSON of an index") {
    fails("", "index", "JSON");
    fails("[]", "index", "a JSON object");
    fails("7", "index", "a JSON object");
    fails("{", "index", "JSON");
    fails("{}", "index", "the key weight_map");
    fails(std::string("{}\0", 3), "index", "a NUL byte");
    fails(R"({"weight_map":[]})", "weight_map", "an array");
    fails(R"({"weight_map":"a.safetensors"})", "weight_map", "a string");
    fails(R"({"weight_map":{},"weight_map":{}})", "index", "a duplicate key 'weight_map'");
    fails(map(R"("x":"a.safetensors","x":"a.safetensors")"), "tensor 'x'", "a duplicate key");
    for (const std::string value : {"1", "-1", "0.5", "null", "true", "[]", "{}"}) {
      fails(map("\"x\":" + value), "tensor 'x'", "a shard name");
    }
    fails("{\"metadata\":" + std::string(1'000'000, '['), "index", "16 levels");
  }
  SECTION("a bad shard names itself, and a mended one is read on the next call") {
    spill(index, map(R"("x":"a.safetensors","y":"b.safetensors")"));
    spill(dir / "b.safetensors", "short");
    const io::safetensors_checkpoint checkpoint(dir.folder());
    CHECK_THROWS_AS(checkpoint.find("x"), format_error);
    CHECK_THROWS_WITH(checkpoint.find("x"), contains("b.safetensors: header length"));
    write_shard(dir / "b.safetensors", {{"y", some}});
    CHECK(same(checkpoint.bytes("y"), some));
  }
  SECTION("a single file that the index does not know") {
    write_shard(dir / "model.safetensors", {{"x", some}});
    fails(map(R"("x":"a.safetensors","y":"b.safetensors")"), "checkpoint", "both, unrelated");
  }
}

TEST_CASE("hostile files: a folder without a checkpoint", "[io][hostile]") {
  const scratch dir;
  CHECK_THROWS_AS(io::safetensors_checkpoint(dir.folder()), format_error);
  CHECK_THROWS_WITH(io::safetensors_checkpoint(dir / "absent"), contains("neither"));
}
