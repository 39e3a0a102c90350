// SPDX-License-Identifier: Apache-2.0
/// Sequence states in files, so that a long prompt needs to be read only once.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/config_json.hpp>
#include <dsv4/io/dtype.hpp>
#include <dsv4/io/safetensors.hpp>
#include <dsv4/io/safetensors_writer.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/model/sequence_state.hpp>

#include <array>
#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4::io {

inline constexpr std::string_view state_file_format = "dsv4-state";
inline constexpr std::string_view state_file_version = "1";

namespace detail {

static_assert(std::endian::native == std::endian::little, "state files are little-endian");

inline constexpr std::int64_t state_max_length = std::int64_t{1} << 40U;  ///< keeps sums far from overflow

/// In the order of attention_cache::for_each_array.
inline constexpr std::array<std::string_view, 7> cache_array_names{
    "window", "main.kv", "main.gate", "main.entries", "index.kv", "index.gate", "index.entries"};

template <class T>
inline constexpr dtype state_dtype = std::is_same_v<T, double> ? dtype::f64 : dtype::f32;

/// What two configurations must share for one to continue the states of the other.
template <model_config C>
std::string config_fingerprint() {
  constexpr std::string_view digits = "0123456789abcdef";
  const std::uint64_t hash = dsv4::detail::fnv1a64(io::config_to_json<C>());
  std::string hex;
  for (int shift = 60; shift >= 0; shift -= 4) hex += digits[hash >> shift & 15U];
  return hex;
}

/// Calls f(name, matrix, rows) for all arrays of layer `i` of a state.
template <class State, class F>
void for_each_state_array(State& state, int i, const F& f) {
  using cache = std::remove_cvref_t<decltype(state.cache(i))>;
  auto name = cache_array_names.begin();
  cache::for_each_array(state.cache(i), state.position(i), [&](auto matrix, std::int64_t rows) {
    f("layers." + std::to_string(i) + "." + std::string(*name++), matrix, rows);
  });
}

/// The metadata of a state file, every entry checked.
class state_metadata {
 public:
  explicit state_metadata(const safetensors_file& file) : file_(file) {}

  const std::string& at(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end()) fail(key, "an entry", "none");
    return found->second;
  }
  void require(const std::string& key, std::string_view want) const {
    if (at(key) != want) fail(key, in_quotes(want), in_quotes(at(key)));
  }
  std::int64_t number(const std::string& key, std::int64_t most) const {
    const std::string& text = at(key);
    std::int64_t value = -1;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code != std::errc{} || end != text.data() + text.size() || value < 0 || value > most)
      fail(key, "a whole number from 0 to " + std::to_string(most), in_quotes(text));
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& key, std::string_view expected, std::string_view found) const {
    throw format_error(file_.path().string(), "metadata " + in_quotes(key), expected, found);
  }
  const safetensors_file& file_;
};

}  // namespace detail

/// Writes all that `state` remembers. The file is written aside and renamed: it is there whole or not at all.
/// Throws io_error.
template <model_config C, class T>
void save_state(const std::filesystem::path& file, const sequence_state<C, T>& state) {
  safetensors_writer writer;
  writer.set_metadata("format", state_file_format);
  writer.set_metadata("version", state_file_version);
  writer.set_metadata("config", detail::config_fingerprint<C>());
  writer.set_metadata("dtype", dtype_name(detail::state_dtype<T>));
  writer.set_metadata("length", std::to_string(state.length()));
  writer.set_metadata("mtp_length", std::to_string(state.mtp_length()));
  writer.set_metadata("newest", std::to_string(state.newest()));
  writer.set_metadata("mtp_newest", std::to_string(state.mtp_newest()));
  writer.set_metadata("rewind", std::to_string(state.rewind()));
  for (int i = 0; i < state.layers; ++i)
    detail::for_each_state_array(state, i, [&](std::string name, matrix_view<const T> m, std::int64_t rows) {
      const std::span used(m.data, static_cast<std::size_t>(rows * m.extent[1]));
      writer.add(std::move(name), detail::state_dtype<T>, {rows, m.extent[1]}, std::as_bytes(used));
    });
  writer.write(file);
}

/// Reads what save_state wrote for the same configuration and scalar type; the weights and numerics must be
/// the same too, which the file does not tell. A rewind beyond `longest_rewind` is refused, because its
/// memory is taken whether or not the file fills it. Throws io_error or format_error.
template <model_config C, class T>
sequence_state<C, T> load_state(const std::filesystem::path& file, std::int64_t longest_rewind = 4096) {
  const safetensors_file source(file);
  const detail::state_metadata metadata(source);
  metadata.require("format", state_file_format);
  metadata.require("version", state_file_version);
  metadata.require("config", detail::config_fingerprint<C>());
  metadata.require("dtype", dtype_name(detail::state_dtype<T>));
  const std::int64_t length = metadata.number("length", detail::state_max_length),
                     mtp_length = metadata.number("mtp_length", C.num_nextn_predict_layers > 0 ? length : 0),
                     rewind = metadata.number("rewind", longest_rewind);

  sequence_state<C, T> state(rewind);
  // Rings may have reached further than the sequence that they hold now.
  const std::int64_t newest = metadata.number("newest", detail::state_max_length),
                     mtp_newest = metadata.number("mtp_newest", C.num_nextn_predict_layers > 0 ? newest : 0);
  if (newest < length || mtp_newest < mtp_length)
    throw format_error(file.string(), "metadata \"newest\"", "at least the lengths", std::to_string(newest));
  state.set_lengths(newest, mtp_newest);
  if (state.shortest() > length && length != 0)
    throw format_error(file.string(), "metadata \"newest\"", "rings that still hold the sequence",
                       std::to_string(newest));
  state.set_lengths(length, mtp_length);
  // All of the file is checked before its lengths take any memory.
  std::size_t arrays = 0;
  for (int i = 0; i < state.layers; ++i)
    detail::for_each_state_array(
        std::as_const(state), i, [&](const std::string& name, matrix_view<const T> m, std::int64_t rows) {
          const tensor_info& t = source.at(name);
          const std::vector<std::int64_t> shape{rows, m.extent[1]};
          if (t.dtype != detail::state_dtype<T> || t.shape != shape)
            throw format_error(source.path().string(), "tensor " + detail::in_quotes(name),
                               describe(detail::state_dtype<T>, shape), describe(t.dtype, t.shape));
          ++arrays;
        });
  if (arrays != source.tensors().size())
    throw format_error(source.path().string(), "tensors", std::to_string(arrays),
                       std::to_string(source.tensors().size()));
  for (int i = 0; i < state.layers; ++i) {
    state.cache(i).reserve(exec::reference{}, state.position(i), 0);
    detail::for_each_state_array(state, i, [&](const std::string& name, matrix_view<T> m, std::int64_t) {
      const auto bytes = source.bytes(source.at(name));
      if (!bytes.empty()) std::memcpy(m.data, bytes.data(), bytes.size());
    });
  }
  return state;
}

}  // namespace dsv4::io
