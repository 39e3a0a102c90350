// SPDX-License-Identifier: Apache-2.0
/// The checkpoints of a run: one file per saved step, of which the newest few are kept.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/io/training_state.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace dsv4::io {

/// "<folder>/step-000000001000.safetensors" and so on. One run writes to a folder at a time. A run that is
/// killed at any moment loses at most the steps since its last `save`, and never a file that was saved.
class training_folder {
 public:
  /// Makes the folder where there is none, and keeps the newest `keep` files. Throws io_error.
  explicit training_folder(std::filesystem::path folder, int keep = 3)
      : folder_(std::move(folder)), keep_(keep) {
    expect(keep >= 1, "training_folder", "keep", "at least 1", keep);
    std::error_code code;
    std::filesystem::create_directories(folder_, code);
    if (code) throw io_error(folder_.string(), "make folder", code.message());
  }

  std::filesystem::path file(std::int64_t step) const {
    const std::string number = std::to_string(step);
    return folder_ / ("step-" + std::string(digits - std::min(digits, number.size()), '0') + number +
                      std::string(ending));
  }

  /// Saves as of `step`, then removes files that are not to be kept, and what a killed run left unfinished.
  void save(const training_state& state, std::int64_t step) const {
    expect(step >= 0, "training_folder::save", "step", "0 or more", step);
    state.save(file(step));
    const auto all = steps();
    for (std::size_t i = 0; i + static_cast<std::size_t>(keep_) < all.size(); ++i)
      if (all[i] != step) remove(file(all[i]));
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      if (const std::string name = entry.path().filename().string(); name.ends_with(".tmp"))
        if (step_of(std::string_view(name).substr(0, name.size() - 4))) remove(entry.path());
  }

  /// The steps that there are files of, rising.
  std::vector<std::int64_t> steps() const {
    std::vector<std::int64_t> all;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      if (const auto step = step_of(entry.path().filename().string())) all.push_back(*step);
    std::sort(all.begin(), all.end());
    return all;
  }

  /// Loads the newest file and returns its step, or nothing where there is none yet.
  std::optional<std::int64_t> load_newest(const training_state& state) const {
    const auto all = steps();
    if (all.empty()) return std::nullopt;
    state.load(file(all.back()));
    return all.back();
  }

 private:
  static constexpr std::size_t digits = 12;
  static constexpr std::string_view ending = ".safetensors";

  static std::optional<std::int64_t> step_of(std::string_view name) {
    if (!name.starts_with("step-") || !name.ends_with(ending)) return std::nullopt;
    name.remove_prefix(5);
    name.remove_suffix(ending.size());
    std::int64_t step = -1;
    const auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), step);
    if (code != std::errc{} || end != name.data() + name.size() || step < 0 || name.size() < digits)
      return std::nullopt;
    return step;
  }
  static void remove(const std::filesystem::path& path) {
    std::error_code code;
    std::filesystem::remove(path, code);
    if (code) throw io_error(path.string(), "remove", code.message());
  }

  std::filesystem::path folder_;
  int keep_;
};

}  // namespace dsv4::io
