// SPDX-License-Identifier: Apache-2.0
/// Reading a safetensors file that is in memory already, such as one that a program carries in itself.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/safetensors.hpp>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

namespace dsv4::io {

/// What safetensors_file is, of bytes that the caller keeps: a source for load_parameters.
class safetensors_memory {
 public:
  /// Checks `bytes`, which must outlive this object and what is read from it; `name` stands for them in
  /// messages. Throws `format_error`.
  safetensors_memory(std::filesystem::path name, std::span<const std::byte> bytes)
      : name_(std::move(name)),
        header_(parse_safetensors_header(name_.string(), bytes)),
        data_(bytes.subspan(static_cast<std::size_t>(header_.data_offset))) {}

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return name_; }
  /// All tensors, in the order of their data.
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return header_.tensors; }
  /// The tensor called `name`, or null.
  [[nodiscard]] const tensor_info* find(std::string_view name) const noexcept { return header_.find(name); }

  /// The data of `info`, as of safetensors_file. Throws `contract_error` for a range outside the bytes.
  [[nodiscard]] std::span<const std::byte> bytes(const tensor_info& info) const {
    if (info.begin > info.end || info.end > data_.size())
      throw contract_error("safetensors_memory::bytes", "info", "a tensor with data in " + name_.string(),
                           detail::in_quotes(info.name));
    return data_.subspan(info.begin, info.size_bytes());
  }

 private:
  std::filesystem::path name_;
  safetensors_header header_;
  std::span<const std::byte> data_;
};

}  // namespace dsv4::io
