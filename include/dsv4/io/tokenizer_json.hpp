// SPDX-License-Identifier: Apache-2.0
/// The values of a tokenizer.json, each with its place in the file.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checked_json.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace dsv4::io::detail {

/// A value of a tokenizer.json and where it is, so that every refusal names its place.
class json_place {
 public:
  using json = nlohmann::json;

  json_place(std::string_view file, std::string path, const json& value)
      : file_(file), path_(std::move(path)), value_(&value) {}

  [[nodiscard]] std::string_view file() const noexcept { return file_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] const json& value() const noexcept { return *value_; }
  [[nodiscard]] bool is_null() const noexcept { return value_->is_null(); }

  [[noreturn]] void refuse(std::string_view expected) const {
    throw format_error(file_, path_, expected,
                       value_->is_structured() ? value_->type_name() : printable(value_->dump()));
  }

  /// The value of `key`; null where it is absent.
  [[nodiscard]] json_place operator[](const char* key) const {
    static const json null;
    const auto found = value_->find(key);
    return {file_, path_.empty() ? key : path_ + "." + key, found == value_->end() ? null : *found};
  }

  /// An object with no keys but `known`: what is not understood must not be passed over.
  void check_keys(std::initializer_list<std::string_view> known) const {
    if (!value_->is_object()) refuse("an object");
    for (const auto& [key, value] : value_->items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        throw format_error(file_, path_.empty() ? "tokenizer" : path_, "only keys that are supported",
                           in_quotes(key));
  }

  [[nodiscard]] const std::string& text() const {
    if (!value_->is_string()) refuse("a string");
    return value_->get_ref<const std::string&>();
  }
  [[nodiscard]] bool flag() const {
    if (!value_->is_boolean()) refuse("true or false");
    return value_->get<bool>();
  }
  /// A token's id.
  [[nodiscard]] std::int32_t id() const {
    if (!value_->is_number_unsigned() ||
        value_->get<std::uint64_t>() >= std::numeric_limits<std::int32_t>::max())
      refuse("an id from 0 to 2^31 - 2");
    return value_->get<std::int32_t>();
  }
  /// `text()` of an object's "type".
  [[nodiscard]] const std::string& type() const {
    if (!value_->is_object()) refuse("an object");
    return (*this)["type"].text();
  }
  void expect(const json& wanted) const {
    if (*value_ != wanted) refuse(wanted.dump());
  }
  void expect_null_or(const json& wanted) const {
    if (!is_null()) expect(wanted);
  }

  /// Calls f(place) for the elements of an array.
  template <class F>
  void for_each(const F& f) const {
    if (!value_->is_array()) refuse("an array");
    for (std::size_t i = 0; i < value_->size(); ++i)
      f(json_place(file_, path_ + "[" + std::to_string(i) + "]", (*value_)[i]));
  }

 private:
  std::string_view file_;
  std::string path_;
  const json* value_;
};

/// Parses the text of a tokenizer.json: no key twice, nesting bounded.
inline nlohmann::json parse_tokenizer(std::string_view file, std::string_view text) {
  using json = nlohmann::json;
  constexpr std::size_t max_bytes = std::size_t{1} << 28U;
  constexpr int max_depth = 16;
  if (text.size() > max_bytes)
    throw format_error(file, "tokenizer", "at most " + std::to_string(max_bytes) + " bytes",
                       std::to_string(text.size()) + " bytes");
  // nlohmann takes NUL for the end of the input, which would hide whatever follows it.
  if (text.find('\0') != std::string_view::npos) throw format_error(file, "tokenizer", "JSON", "a NUL byte");
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > max_depth)
      throw format_error(file, "tokenizer", "at most " + std::to_string(max_depth) + " levels of nesting",
                         "more");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw format_error(file, "tokenizer", "each key once",
                         "a duplicate key " + in_quotes(value.get<std::string>()));
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& failure) {
    throw format_error(file, "tokenizer", "JSON", printable(failure.what()));
  }
}

}  // namespace dsv4::io::detail
