// SPDX-License-Identifier: Apache-2.0
/// Writing safetensors files, whole or not at all.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unistd.h>
#include <utility>
#include <vector>

namespace dsv4::io {

namespace detail {

/// A file that takes its name only when all of it is on disk. Until `commit`, the bytes lie at
/// `path` + ".tmp", which the destructor removes.
class aside_file {
 public:
  explicit aside_file(const std::filesystem::path& path)
      : path_(path), aside_(path.native() + ".tmp"), fd_(open_aside(aside_)) {}
  aside_file(const aside_file&) = delete;
  aside_file& operator=(const aside_file&) = delete;
  ~aside_file() {
    if (!renamed_) ::unlink(aside_.c_str());
  }

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t put = ::write(fd_.get(), bytes.data(), std::min(bytes.size(), std::size_t{1} << 30U));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) fail(aside_, "write");
      bytes = bytes.subspan(static_cast<std::size_t>(put));
    }
  }

  /// Syncs, renames, and syncs the folder, so that a crash leaves the old file or the new one.
  void commit() {
    if (::fsync(fd_.get()) != 0) fail(aside_, "fsync");
    if (::close(fd_.release()) != 0) fail(aside_, "close");
    if (::rename(aside_.c_str(), path_.c_str()) != 0) fail(path_, "rename");
    renamed_ = true;
    const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    const unique_fd parent(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (parent.get() < 0) fail(folder, "open");
    // EINVAL: some network file systems have no sync for folders.
    if (::fsync(parent.get()) != 0 && errno != EINVAL) fail(folder, "fsync");
  }

 private:
  [[noreturn]] static void fail(const std::filesystem::path& path, const char* operation) {
    const int code = errno;  // before anything below can change it
    throw io_error(path.string(), operation, errno_text(code));
  }
  [[nodiscard]] static int open_aside(const std::filesystem::path& aside) {
    const int fd = ::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) fail(aside, "open");
    return fd;
  }

  std::filesystem::path path_;
  std::filesystem::path aside_;
  unique_fd fd_;
  bool renamed_ = false;
};

}  // namespace detail

/// Collects tensors and writes them as one file. The same calls give the same bytes: tensors and metadata
/// lie in the order of the calls. The writer keeps spans, not copies.
class safetensors_writer {
 public:
  /// Adds a tensor of `shape` (elements per axis) whose row-major little-endian `bytes` must live and stay
  /// unchanged until the last `write`. Throws `contract_error` for a name that is taken, reserved or not
  /// UTF-8, for a shape that is negative, too large or not whole bytes, and when `bytes` does not fit it.
  void add(std::string name, dtype type, std::vector<std::int64_t> shape, std::span<const std::byte> bytes) {
    add_entry(std::move(name), type, std::move(shape), bytes.size());
    tensors_.back().bytes = bytes;
  }

  /// Adds a tensor to the header only: the file will lack its data (file_contents::headers_only). To be used
  /// for all tensors of a file or none.
  void add_header(std::string name, dtype type, std::vector<std::int64_t> shape) {
    add_entry(std::move(name), type, std::move(shape), std::nullopt);
  }

  /// Sets one metadata entry; a key set again keeps its place and takes the new value. Throws
  /// `contract_error` for text that is not UTF-8.
  void set_metadata(std::string_view key, std::string_view value) {
    constexpr std::string_view where = "safetensors_writer::set_metadata";
    std::string quoted_key = json_string(where, "key", key);
    std::string quoted_value = json_string(where, "value", value);
    const auto at = std::find_if(metadata_.begin(), metadata_.end(),
                                 [&](const auto& entry) { return entry.first == quoted_key; });
    if (at != metadata_.end()) {
      at->second = std::move(quoted_value);
    } else {
      metadata_.emplace_back(std::move(quoted_key), std::move(quoted_value));
    }
  }

  /// Writes `path` + ".tmp", syncs it and renames it to `path`: readers see the old file or the new one,
  /// and tensors may come from a mapping of the old one. One writer per path at a time. Throws `io_error`
  /// (the ".tmp" is removed) and `contract_error` for a header beyond the format's 100 MB.
  void write(const std::filesystem::path& path) const {
    const std::string text = header_text();
    std::array<std::byte, 8> length{};
    for (std::size_t i = 0; i < length.size(); ++i) {
      length[i] = static_cast<std::byte>((static_cast<std::uint64_t>(text.size()) >> (8 * i)) & 0xFFU);
    }
    detail::aside_file out(path);
    out.write(length);
    out.write(std::as_bytes(std::span(text)));
    for (const auto& t : tensors_) out.write(t.bytes);
    out.commit();
  }

 private:
  struct pending {
    std::string quoted_name;
    io::dtype dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t size;
    std::span<const std::byte> bytes;
  };

  /// Checks and enters a tensor, without its bytes.
  void add_entry(std::string name, dtype type, std::vector<std::int64_t> shape,
                 std::optional<std::uint64_t> given) {
    constexpr std::string_view where = "safetensors_writer::add";
    if (name == safetensors_metadata_key) throw contract_error(where, "name", "a tensor's name", name);
    if (names_.contains(name)) {
      throw contract_error(where, "name", "a new name", "a second tensor " + detail::in_quotes(name));
    }
    std::string quoted_name = json_string(where, "name", name);
    const std::string found = detail::in_quotes(name) + " of " + describe(type, shape);
    if (shape.size() > safetensors_max_rank) throw contract_error(where, "shape", "at most 64 axes", found);
    const auto size = tensor_bytes(type, shape);
    if (!size) throw contract_error(where, "shape", "axes >= 0 that fill whole bytes and fit 64 bits", found);
    if (given && *given != *size) {
      throw contract_error(where, "bytes", std::to_string(*size) + " bytes for " + found,
                           std::to_string(*given) + " bytes");
    }
    tensors_.push_back({std::move(quoted_name), type, std::move(shape), *size, {}});
    names_.insert(std::move(name));
  }

  /// `text` as a JSON string, with its quotes.
  [[nodiscard]] static std::string json_string(std::string_view where, std::string_view argument,
                                               std::string_view text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::type_error&) {
      throw contract_error(where, argument, "UTF-8", "other bytes");  // not quoted: no terminal could show it
    }
  }

  /// The JSON header, padded with spaces so that the data section starts on 8 bytes.
  [[nodiscard]] std::string header_text() const {
    std::string text = "{";
    if (!metadata_.empty()) {
      text.append("\"").append(safetensors_metadata_key).append("\":{");
      for (const auto& [key, value] : metadata_) {
        if (text.back() != '{') text += ',';
        text += key + ":" + value;
      }
      text += '}';
    }
    std::uint64_t offset = 0;
    for (const auto& t : tensors_) {
      if (text.size() > 1) text += ',';
      text += t.quoted_name + ":{\"dtype\":\"" + std::string(dtype_name(t.dtype)) + "\",\"shape\":[";
      for (std::size_t i = 0; i < t.shape.size(); ++i)
        text.append(i == 0 ? "" : ",").append(std::to_string(t.shape[i]));
      text += "],\"data_offsets\":[" + std::to_string(offset) + ",";
      offset += t.size;
      text += std::to_string(offset) + "]}";
    }
    text += '}';
    text.append((8 - text.size() % 8) % 8, ' ');
    if (text.size() > safetensors_max_header_bytes) {
      throw contract_error("safetensors_writer::write", "tensors",
                           "a header of at most " + std::to_string(safetensors_max_header_bytes) + " bytes",
                           std::to_string(text.size()) + " bytes");
    }
    return text;
  }

  std::vector<pending> tensors_;
  std::set<std::string, std::less<>> names_;
  std::vector<std::pair<std::string, std::string>> metadata_;  ///< as JSON strings
};

}  // namespace dsv4::io
