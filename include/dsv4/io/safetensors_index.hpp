// SPDX-License-Identifier: Apache-2.0
/// A checkpoint folder: one safetensors file, or several under an index.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/io/safetensors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace dsv4::io {

inline constexpr std::string_view checkpoint_index_name = "model.safetensors.index.json";
inline constexpr std::string_view checkpoint_single_name = "model.safetensors";

namespace detail {

/// Tensor name to shard name.
using weight_map = std::map<std::string, std::string, std::less<>>;

/// Takes "weight_map" from an index. Other keys, such as "metadata" with its total_size, may hold anything
/// of a bounded depth: converters disagree about them, so nothing is derived from them.
class index_sax {
 public:
  using json = nlohmann::json;

  index_sax(std::string_view file, weight_map& out) : file_(file), out_(out) {}

  bool null() { return value("null"); }
  bool boolean(bool) { return value("a boolean"); }
  bool number_integer(std::int64_t) { return value("a number"); }
  bool number_unsigned(std::uint64_t) { return value("a number"); }
  bool number_float(double, const std::string&) { return value("a number"); }
  bool binary(json::binary_t&) { return value("binary data"); }
  bool string(std::string& text) {
    if (depth_ != 2 || !in_map_) return value("a string");
    check_shard(text);
    out_[tensor_] = std::move(text);
    return true;
  }
  bool start_object(std::size_t) {
    if (depth_ == 1 && at_map_) {
      in_map_ = true;
    } else if (depth_ > 0) {
      value("an object");
    }
    return deeper();
  }
  bool start_array(std::size_t) { return value("an array") && deeper(); }
  bool key(std::string& name) {
    if (depth_ == 1) {
      at_map_ = name == "weight_map";
      if (at_map_ && std::exchange(have_map_, true)) {
        throw format_error(file_, "index", "each key once", "a duplicate key 'weight_map'");
      }
    } else if (depth_ == 2 && in_map_) {
      if (!out_.emplace(name, "").second) {
        throw format_error(file_, "tensor " + in_quotes(name), "each name once", "a duplicate key");
      }
      tensor_ = std::move(name);
    }
    return true;
  }
  bool end_object() { return shallower(); }
  bool end_array() { return shallower(); }
  bool parse_error(std::size_t, const std::string&, const json::exception& failure) {
    throw format_error(file_, "index", "JSON", printable(failure.what()));
  }

  [[nodiscard]] bool have_map() const noexcept { return have_map_; }

 private:
  static constexpr int deepest = 16;

  /// Any value that is not a shard name: refused where one is due.
  bool value(std::string_view found) const {
    if (depth_ == 0) throw format_error(file_, "index", "a JSON object", found);
    if (depth_ == 1 && at_map_) throw format_error(file_, "weight_map", "an object", found);
    if (in_map_) throw format_error(file_, "tensor " + in_quotes(tensor_), "a shard name", found);
    return true;
  }
  bool deeper() {
    if (++depth_ > deepest) throw format_error(file_, "index", "at most 16 levels of nesting", "more");
    return true;
  }
  bool shallower() {
    if (--depth_ == 1) in_map_ = false;
    return true;
  }
  /// A shard lies in the folder itself: an index must not lead a reader elsewhere.
  void check_shard(std::string_view shard) const {
    const bool plain = std::none_of(shard.begin(), shard.end(), [](char c) {
      return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20;
    });
    if (shard.empty() || shard == "." || !plain || shard.find("..") != std::string_view::npos) {
      throw format_error(file_, "tensor " + in_quotes(tensor_), "the name of a file in the same folder",
                         in_quotes(shard));
    }
  }

  std::string_view file_;
  weight_map& out_;
  std::string tensor_;
  int depth_ = 0;
  bool at_map_ = false, in_map_ = false, have_map_ = false;
};

}  // namespace detail

/// The tensors of a checkpoint folder as one set; move-only. Shards are opened on the first access to
/// tensors, all at once and only once, because only all of them together can be checked against the index.
/// Const calls are safe from several threads.
class safetensors_checkpoint {
 public:
  /// Reads "model.safetensors.index.json" in `folder` or, without one, takes "model.safetensors" alone.
  /// Throws `format_error` for a folder with neither, with a single file that the index leaves out, for a
  /// bad index and for a missing shard; `io_error` when a file cannot be read.
  explicit safetensors_checkpoint(std::filesystem::path folder, file_access access = file_access::map,
                                  file_contents contents = file_contents::complete)
      : folder_(std::move(folder)),
        access_(access),
        contents_(contents),
        lazy_(std::make_unique<shard_set>()) {
    const auto index = folder_ / checkpoint_index_name;
    const bool single = present(folder_ / checkpoint_single_name);
    if (present(index)) {
      origin_ = index.string();
      indexed_ = true;
      read_index(index);
      if (single && !std::binary_search(shard_names_.begin(), shard_names_.end(), checkpoint_single_name)) {
        throw format_error(origin_, "checkpoint", "the index or model.safetensors", "both, unrelated");
      }
    } else if (single) {
      origin_ = (folder_ / checkpoint_single_name).string();
      shard_names_.emplace_back(checkpoint_single_name);
    } else {
      throw format_error(folder_.string(), "checkpoint", "model.safetensors.index.json or model.safetensors",
                         "neither");
    }
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return folder_; }
  /// File names of the shards, sorted.
  [[nodiscard]] std::span<const std::string> shard_names() const noexcept { return shard_names_; }

  // Every call below opens the shards if none did before, and throws what that throws: `io_error` and
  // `format_error` of `safetensors_file`, and `format_error` when index and shards disagree.

  /// The tensor called `name`, or null.
  [[nodiscard]] const tensor_info* find(std::string_view name) const {
    const auto* const found = lookup(name);
    return found == nullptr ? nullptr : found->info;
  }
  /// The tensor called `name`. Throws `format_error` when there is none.
  [[nodiscard]] const tensor_info& at(std::string_view name) const { return *located_at(name).info; }
  /// The data of the tensor called `name`, as `safetensors_file::bytes`. Throws `format_error` when there
  /// is none.
  [[nodiscard]] std::span<const std::byte> bytes(std::string_view name) const {
    const auto& found = located_at(name);
    return shards()[found.shard].bytes(*found.info);
  }
  [[nodiscard]] std::span<const std::byte> bytes(const tensor_info& info) const { return bytes(info.name); }
  /// The path of the file that holds the tensor called `name`. Throws `format_error` when there is none.
  [[nodiscard]] const std::filesystem::path& file_of(std::string_view name) const {
    return shards()[located_at(name).shard].path();
  }

  /// Calls `visit(const tensor_info&, std::span<const std::byte>)` for every tensor: shard by shard in the
  /// order of their names, and in the order of the data within each, so that disks read forward.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const auto& shard : shards()) {
      for (const auto& info : shard.tensors()) visit(info, shard.bytes(info));
    }
  }

  [[nodiscard]] std::size_t tensor_count() const { return opened().by_name.size(); }
  /// Bytes of all tensor data, without headers.
  [[nodiscard]] std::uint64_t total_bytes() const {
    std::uint64_t total = 0;
    for (const auto& shard : shards()) {
      for (const auto& info : shard.tensors()) total += info.size_bytes();
    }
    return total;
  }
  /// The open shards, in the order of `shard_names`.
  [[nodiscard]] std::span<const safetensors_file> shards() const { return opened().files; }

 private:
  struct located {
    const tensor_info* info;
    std::size_t shard;
  };
  struct shard_set {
    std::mutex guard;
    bool open = false;
    std::vector<safetensors_file> files;
    std::vector<located> by_name;
  };

  [[nodiscard]] static bool present(const std::filesystem::path& path) {
    std::error_code code;
    const bool found = std::filesystem::exists(path, code);
    if (code) throw io_error(path.string(), "stat", code.message());
    return found;
  }

  void read_index(const std::filesystem::path& path) {
    const mapped_file file(path, access_);
    const auto bytes = file.bytes();
    if (bytes.size() > safetensors_max_header_bytes) {
      throw format_error(origin_, "index",
                         "at most " + std::to_string(safetensors_max_header_bytes) + " bytes",
                         std::to_string(bytes.size()));
    }
    detail::index_sax sax(origin_, index_);
    detail::parse_json(origin_, "index", {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, sax);
    if (!sax.have_map()) throw format_error(origin_, "index", "the key weight_map", "none");
    for (const auto& [tensor, shard] : index_) shard_names_.push_back(shard);
    std::sort(shard_names_.begin(), shard_names_.end());
    shard_names_.erase(std::unique(shard_names_.begin(), shard_names_.end()), shard_names_.end());
    for (const auto& shard : shard_names_) {
      if (!present(folder_ / shard)) {
        throw format_error(origin_, "shard " + detail::in_quotes(shard), "a file in the folder", "none");
      }
    }
  }

  [[nodiscard]] const shard_set& opened() const {
    const std::lock_guard lock(lazy_->guard);
    if (lazy_->open) return *lazy_;
    // Built beside, then moved in: after an exception the next call starts anew.
    std::vector<safetensors_file> files;
    files.reserve(shard_names_.size());
    for (const auto& shard : shard_names_) files.emplace_back(folder_ / shard, access_, contents_);
    std::vector<located> all;
    for (std::size_t i = 0; i < files.size(); ++i) {
      for (const auto& info : files[i].tensors()) all.push_back({&info, i});
    }
    std::sort(all.begin(), all.end(), [](const located& a, const located& b) {
      return a.info->name != b.info->name ? a.info->name < b.info->name : a.shard < b.shard;
    });
    check_union(all);
    lazy_->files = std::move(files);
    lazy_->by_name = std::move(all);
    lazy_->open = true;
    return *lazy_;
  }

  /// Holds the sorted union of all shards against the index.
  void check_union(std::span<const located> all) const {
    const auto shard = [this](const located& l) {
      return "shard " + detail::in_quotes(shard_names_[l.shard]);
    };
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::string& name = all[i].info->name;
      if (i > 0 && name == all[i - 1].info->name) {
        throw format_error(origin_, "tensor " + detail::in_quotes(name), "one shard",
                           "it in " + shard(all[i - 1]) + " and " + shard(all[i]));
      }
      if (indexed_ && !index_.contains(name)) {
        throw format_error(origin_, "tensor " + detail::in_quotes(name), "it in the index",
                           "it only in " + shard(all[i]));
      }
    }
    for (const auto& [name, shard_name] : index_) {
      const auto* const found = lookup(all, name);
      if (found == nullptr || shard_names_[found->shard] != shard_name) {
        throw format_error(origin_, "tensor " + detail::in_quotes(name),
                           "it in shard " + detail::in_quotes(shard_name),
                           found == nullptr ? "none" : "it in " + shard(*found));
      }
    }
  }

  [[nodiscard]] static const located* lookup(std::span<const located> all, std::string_view name) {
    const auto at = std::lower_bound(all.begin(), all.end(), name,
                                     [](const located& l, std::string_view n) { return l.info->name < n; });
    return at != all.end() && at->info->name == name ? &*at : nullptr;
  }
  [[nodiscard]] const located* lookup(std::string_view name) const { return lookup(opened().by_name, name); }
  [[nodiscard]] const located& located_at(std::string_view name) const {
    if (const auto* const found = lookup(name)) return *found;
    throw format_error(origin_, "tensor " + detail::in_quotes(name), "a tensor of this name", "none");
  }

  std::filesystem::path folder_;
  file_access access_;
  file_contents contents_;
  std::string origin_;  ///< the index or the single file; names the checkpoint in messages
  bool indexed_ = false;
  detail::weight_map index_;
  std::vector<std::string> shard_names_;
  std::unique_ptr<shard_set> lazy_;
};

}  // namespace dsv4::io
