// SPDX-License-Identifier: Apache-2.0
/// Reading safetensors files. Every file is taken as hostile: all of it is checked before any use.
///
/// Layout: 8 bytes little-endian header length N, N bytes of JSON (padded with spaces), tensor data.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/dtype.hpp>
#include <dsv4/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace dsv4::io {

static_assert(sizeof(std::size_t) == 8, "offsets of checkpoint files need 64-bit sizes");

/// What a file must hold.
enum class file_contents {
  complete,      ///< header and all data
  headers_only,  ///< the header; data may be missing, for planning without it
};

/// One tensor of a file.
struct tensor_info {
  std::string name;
  io::dtype dtype = io::dtype::f32;
  std::vector<std::int64_t> shape;  ///< elements per axis, row-major; empty for a scalar
  std::uint64_t begin = 0;          ///< first byte, counted from the start of the data section
  std::uint64_t end = 0;            ///< one past the last byte, counted likewise

  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return end - begin; }
};

/// A header that passed every check.
struct safetensors_header {
  std::vector<tensor_info> tensors;             ///< in the order of their data
  std::vector<std::size_t> by_name;             ///< indices into `tensors`, sorted by name
  std::map<std::string, std::string> metadata;  ///< the "__metadata__" entry
  std::uint64_t data_offset = 0;                ///< bytes before the data section

  /// The tensor called `name`, or null.
  [[nodiscard]] const tensor_info* find(std::string_view name) const noexcept {
    const auto at =
        std::lower_bound(by_name.begin(), by_name.end(), name,
                         [this](std::size_t i, std::string_view n) { return tensors[i].name < n; });
    return at != by_name.end() && tensors[*at].name == name ? &tensors[*at] : nullptr;
  }
};

inline constexpr std::uint64_t safetensors_max_header_bytes = 100'000'000;  ///< the format's own limit
inline constexpr std::size_t safetensors_max_rank = 64;  ///< more axes than any tool writes
inline constexpr std::string_view safetensors_metadata_key = "__metadata__";

namespace detail {

/// Builds tensors straight from parser events: no document tree, so a duplicate key cannot vanish in one,
/// and any nesting beyond the three levels of the format is refused where it starts.
class header_sax {
 public:
  using json = nlohmann::json;

  header_sax(std::string_view file, safetensors_header& out) : file_(file), out_(out) {}

  bool null() { wrong("null"); }
  bool boolean(bool) { wrong("a boolean"); }
  bool number_float(double, const std::string& text) {
    wrong("the number " + printable(text) + ", a fraction or beyond 64 bits");
  }
  bool binary(json::binary_t&) { wrong("binary data"); }
  bool number_integer(std::int64_t value) {
    if (value < 0) wrong("the negative number " + std::to_string(value));
    return number_unsigned(static_cast<std::uint64_t>(value));
  }
  bool number_unsigned(std::uint64_t value) {
    if (where_ == place::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        wrong("the number " + std::to_string(value));
      }
      if (info_.shape.size() == safetensors_max_rank) wrong("more than 64 axes");
      info_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (where_ == place::offsets) {
      if (offsets_ == 2) wrong("more than two numbers");
      (offsets_++ == 0 ? info_.begin : info_.end) = value;
    } else {
      wrong("the number " + std::to_string(value));
    }
    return true;
  }
  bool string(std::string& value) {
    if (where_ == place::metadata) {
      out_.metadata[key_] = std::move(value);
    } else if (where_ == place::entry && key_ == "dtype") {
      const auto type = dtype_from_name(value);
      if (!type) throw format_error(file_, item(), "a known dtype", in_quotes(value));
      info_.dtype = *type;
    } else {
      wrong("the string " + in_quotes(value));
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (where_ == place::outside) {
      where_ = place::top;
    } else if (where_ == place::top && info_.name == safetensors_metadata_key) {
      where_ = place::metadata;
    } else if (where_ == place::top) {
      where_ = place::entry;
    } else {
      wrong("an object");
    }
    return true;
  }
  bool key(std::string& name) {
    if (where_ == place::top) {
      if (name == safetensors_metadata_key && std::exchange(have_metadata_, true)) repeated(name);
      info_ = {};  // two tensors of one name are found after parsing, by sorting
      info_.name = std::move(name);
      have_dtype_ = have_shape_ = have_offsets_ = false;
      return true;
    }
    if (where_ == place::metadata) {
      if (!out_.metadata.emplace(name, "").second) repeated(name);
    } else {
      bool* const have = name == "dtype"          ? &have_dtype_
                         : name == "shape"        ? &have_shape_
                         : name == "data_offsets" ? &have_offsets_
                                                  : nullptr;
      if (have == nullptr) {
        throw format_error(file_, item(), "only the keys dtype, shape and data_offsets",
                           "the key " + in_quotes(name));
      }
      if (std::exchange(*have, true)) repeated(name);
    }
    key_ = std::move(name);
    return true;
  }
  bool end_object() {
    if (where_ == place::entry) {
      if (!have_dtype_) missing("dtype");
      if (!have_shape_) missing("shape");
      if (!have_offsets_) missing("data_offsets");
      out_.tensors.push_back(std::move(info_));
    }
    where_ = where_ == place::top ? place::outside : place::top;
    return true;
  }
  bool start_array(std::size_t) {
    if (where_ == place::entry && key_ == "shape") {
      where_ = place::shape;
    } else if (where_ == place::entry && key_ == "data_offsets") {
      where_ = place::offsets;
      offsets_ = 0;
    } else {
      wrong("an array");
    }
    return true;
  }
  bool end_array() {
    if (where_ == place::offsets && offsets_ != 2) wrong("fewer than two numbers");
    where_ = place::entry;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const json::exception& failure) {
    throw format_error(file_, "header", "JSON", printable(failure.what()));
  }

 private:
  enum class place { outside, top, metadata, entry, shape, offsets };

  [[nodiscard]] std::string item() const {
    if (where_ == place::outside) return "header";
    if (info_.name == safetensors_metadata_key) return std::string(safetensors_metadata_key);
    return "tensor " + in_quotes(info_.name);
  }
  [[nodiscard]] std::string expected() const {
    switch (where_) {
      case place::outside:
        return "a JSON object";
      case place::top:
        return "an object";
      case place::metadata:
        return "a string for the key " + in_quotes(key_);
      case place::entry:
        return key_ == "dtype" ? "a string for dtype" : "an array for " + key_;
      case place::shape:
        return "a shape of whole numbers from 0 to 2^63 - 1";
      case place::offsets:
        break;
    }
    return "data_offsets of two whole numbers";
  }
  [[noreturn]] void wrong(std::string_view found) const {
    throw format_error(file_, item(), expected(), found);
  }
  [[noreturn]] void missing(std::string_view key) const {
    throw format_error(file_, item(), "the key " + std::string(key), "none");
  }
  [[noreturn]] void repeated(std::string_view key) const {
    throw format_error(file_, where_ == place::top ? "header" : item(), "each key once",
                       "a duplicate key " + in_quotes(key));
  }

  std::string_view file_;
  safetensors_header& out_;
  place where_ = place::outside;
  tensor_info info_;
  std::string key_;
  int offsets_ = 0;
  bool have_metadata_ = false, have_dtype_ = false, have_shape_ = false, have_offsets_ = false;
};

/// Checks names and data spans of a parsed header against `data_bytes`, and sorts.
inline void check_header(std::string_view file, file_contents contents, std::uint64_t data_bytes,
                         safetensors_header& header) {
  auto& tensors = header.tensors;
  for (const auto& t : tensors) {
    const std::string item = "tensor " + in_quotes(t.name);
    const std::string range = std::string("[") + std::to_string(t.begin) + ", " + std::to_string(t.end) + "]";
    if (t.begin > t.end) throw format_error(file, item, "data_offsets in rising order", range);
    if (t.end > data_bytes && contents == file_contents::complete) {
      throw format_error(file, item, "data_offsets within " + std::to_string(data_bytes) + " bytes of data",
                         range);
    }
    const auto bytes = tensor_bytes(t.dtype, t.shape);
    if (!bytes) {
      throw format_error(file, item, "a shape that fills whole bytes and fits 64 bits",
                         describe(t.dtype, t.shape));
    }
    if (*bytes != t.size_bytes()) {
      throw format_error(file, item, std::to_string(*bytes) + " bytes for " + describe(t.dtype, t.shape),
                         std::to_string(t.size_bytes()) + " bytes at " + range);
    }
  }
  // By end too: an empty tensor stands before the one that starts at the same byte.
  std::stable_sort(tensors.begin(), tensors.end(), [](const tensor_info& a, const tensor_info& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  for (std::size_t i = 0; i < tensors.size(); ++i) header.by_name.push_back(i);
  std::sort(header.by_name.begin(), header.by_name.end(),
            [&](std::size_t a, std::size_t b) { return tensors[a].name < tensors[b].name; });
  for (std::size_t i = 1; i < tensors.size(); ++i) {
    const auto& name = tensors[header.by_name[i]].name;
    if (name == tensors[header.by_name[i - 1]].name) {
      throw format_error(file, "tensor " + in_quotes(name), "each name once", "a duplicate");
    }
  }
  std::uint64_t covered = 0;
  for (const auto& t : tensors) {
    if (t.begin != covered) {
      throw format_error(file, "tensor " + in_quotes(t.name), "data from byte " + std::to_string(covered),
                         (t.begin < covered ? "an overlap: data from byte " : "a hole: data from byte ") +
                             std::to_string(t.begin));
    }
    covered = t.end;
  }
  if (covered != data_bytes && contents == file_contents::complete) {
    const std::string last =
        tensors.empty() ? "no tensor" : "tensor " + in_quotes(tensors.back().name) + " last";
    throw format_error(file, "data", std::to_string(data_bytes) + " bytes, all covered by tensors",
                       std::to_string(covered) + " covered bytes, with " + last);
  }
}

}  // namespace detail

/// Checks `whole`, all bytes of a safetensors file, and returns its header. `file` names it in messages.
/// Throws `format_error` on anything that the format does not allow; never reads outside `whole`.
[[nodiscard]] inline safetensors_header parse_safetensors_header(
    std::string_view file, std::span<const std::byte> whole,
    file_contents contents = file_contents::complete) {
  if (whole.size() < 8) {
    throw format_error(file, "header length", "a file of at least 8 bytes",
                       std::to_string(whole.size()) + " bytes");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < 8; ++i) length |= std::to_integer<std::uint64_t>(whole[i]) << (8 * i);
  if (length > safetensors_max_header_bytes) {
    throw format_error(file, "header length",
                       "at most " + std::to_string(safetensors_max_header_bytes) + " bytes",
                       std::to_string(length));
  }
  if (length > whole.size() - 8) {
    throw format_error(file, "header length",
                       "at most the " + std::to_string(whole.size() - 8) + " bytes that follow",
                       std::to_string(length));
  }
  const std::string_view text(reinterpret_cast<const char*>(whole.data() + 8),
                              static_cast<std::size_t>(length));
  // The format asks for this first byte; it also keeps out the byte order mark that nlohmann would skip.
  if (!text.starts_with('{')) {
    throw format_error(file, "header", "a JSON object",
                       text.empty() ? "no text" : detail::in_quotes(text.substr(0, 16)));
  }
  safetensors_header header;
  header.data_offset = 8 + length;
  detail::header_sax sax(file, header);
  detail::parse_json(file, "header", text, sax);
  detail::check_header(file, contents, whole.size() - header.data_offset, header);
  return header;
}

/// An open safetensors file; move-only. Pointers and spans that it hands out survive its moves.
class safetensors_file {
 public:
  /// Opens and checks `path`. Throws `io_error` or `format_error`.
  explicit safetensors_file(std::filesystem::path path, file_access access = file_access::map,
                            file_contents contents = file_contents::complete)
      : file_(std::move(path), access),
        header_(parse_safetensors_header(file_.path().string(), file_.bytes(), contents)) {}

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return file_.path(); }
  /// All tensors, in the order of their data.
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return header_.tensors; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept {
    return header_.metadata;
  }

  /// The tensor called `name`, or null.
  [[nodiscard]] const tensor_info* find(std::string_view name) const noexcept { return header_.find(name); }
  /// The tensor called `name`. Throws `format_error` when there is none.
  [[nodiscard]] const tensor_info& at(std::string_view name) const {
    if (const auto* const info = find(name)) return *info;
    throw format_error(path().string(), "tensor " + detail::in_quotes(name), "a tensor of this name", "none");
  }

  /// The data of `info`, one of this file's tensors: row-major, little-endian, possibly misaligned for its
  /// dtype (the format pads nothing). Throws `contract_error` for a range outside the file, as all are that
  /// a headers-only file lacks.
  [[nodiscard]] std::span<const std::byte> bytes(const tensor_info& info) const {
    const auto data = file_.bytes().subspan(static_cast<std::size_t>(header_.data_offset));
    if (info.begin > info.end || info.end > data.size()) {
      throw contract_error("safetensors_file::bytes", "info", "a tensor with data in " + path().string(),
                           detail::in_quotes(info.name));
    }
    return data.subspan(info.begin, info.size_bytes());
  }

 private:
  mapped_file file_;
  safetensors_header header_;
};

}  // namespace dsv4::io
