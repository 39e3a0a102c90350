// SPDX-License-Identifier: Apache-2.0
/// All that a training run must remember, in one file: written whole or not at all, read back bit by bit.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/io/checked_json.hpp>
#include <dsv4/io/dtype.hpp>
#include <dsv4/io/safetensors.hpp>
#include <dsv4/io/safetensors_writer.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/tensor/buffer.hpp>
#include <dsv4/tensor/view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4::io {

namespace detail {
template <class T>
constexpr dtype training_dtype() {
  if constexpr (std::is_same_v<T, double>)
    return dtype::f64;
  else if constexpr (std::is_same_v<T, float>)
    return dtype::f32;
  else if constexpr (std::is_same_v<T, bf16>)
    return dtype::bf16;
  else if constexpr (std::is_same_v<T, std::int64_t>)
    return dtype::i64;
  else if constexpr (std::is_same_v<T, std::int32_t>)
    return dtype::i32;
  else
    return dtype::u8;
}
}  // namespace detail

/// Names for memory that is the caller's: weights, optimiser state, the place in the data, the step, random
/// generators. `save` writes what lies there now, `load` puts back what was saved. The memory must live, and
/// stay where it is, as long as this object; what is on a device gets as much memory on the host beside it.
/// The file is a safetensors file.
class training_state {
 public:
  static constexpr std::string_view format = "dsv4-training-state", version = "1";

  /// An array, dense. Throws contract_error for a name that is taken.
  template <class T, int R>
  void add(std::string name, view<T, R> v) {
    if (!v.dense()) throw contract_error("training_state::add", name, "a dense view", "one with gaps");
    std::vector<std::int64_t> shape(v.extent, v.extent + R);
    if constexpr (detail::training_dtype<T>() == dtype::u8) shape.push_back(sizeof(T));
    add_range(std::move(name), detail::training_dtype<T>(), std::move(shape),
              std::as_writable_bytes(std::span(v.data, static_cast<std::size_t>(v.size()))));
  }
  /// An array wherever the policy's memory is: `save` fetches it, `load` sends it there.
  template <policy P, class T, int R, space S>
  void add(std::string name, const P& p, view<T, R, S> v) {
    if constexpr (S == space::host) {
      add(std::move(name), v);
    } else {
      if (!v.dense()) throw contract_error("training_state::add", name, "a dense view", "one with gaps");
      auto copy = std::make_shared<buffer<T>>(v.size());
      view<T, R> on_host;
      on_host.data = copy->data();
      std::copy_n(v.extent, R, on_host.extent);
      std::copy_n(v.stride, R, on_host.stride);
      add(std::move(name), on_host);
      ranges_.back().fetch = [p, v, copy] { fetch(p, v, copy->data()); };
      ranges_.back().send = [p, v, copy] { send(p, copy->data(), v); };
    }
  }
  /// A number, or any object without pointers.
  template <class T>
  requires std::is_trivially_copyable_v<T>
  void add(std::string name, T& object) { add(std::move(name), view<T, 1>(&object, 1)); }

  /// All weights and tables of a model, as "<prefix><name>".
  template <policy P, model_config C, class T, numerics_config Q, space S>
  void add_parameters(const P& p, parameter_store<C, T, Q, S>& store,
                      const std::string& prefix = "weights.") {
    for_each_parameter<C>(store.views(),
                          [&](const parameter_info& info, auto& v) { add(prefix + info.name, p, v); });
  }
  template <model_config C, class T, numerics_config Q>
  void add_parameters(parameter_store<C, T, Q>& store, const std::string& prefix = "weights.") {
    add_parameters(exec::reference{}, store, prefix);
  }
  /// What `for_each_state` of an optimizer tells, as "<prefix><name>".
  template <policy P, class Optimizer>
  void add_optimizer(const P& p, Optimizer& o, const std::string& prefix = "optimizer.") {
    o.for_each_state([&](const std::string& name, auto v) { add(prefix + name, p, v); });
  }
  template <class Optimizer>
  void add_optimizer(Optimizer& o, const std::string& prefix = "optimizer.") {
    add_optimizer(exec::reference{}, o, prefix);
  }

  /// Something that must be the same when the run goes on, such as the configuration, the data or an option:
  /// `load` refuses a file in which it is not. The last value for a name counts.
  void require(const std::string& name, std::string value) { required_[name] = std::move(value); }
  void require(const std::string& name, std::uint64_t value) { require(name, std::to_string(value)); }

  /// Writes the file aside, syncs it and renames it: whoever is killed, or loses power, at whatever moment,
  /// leaves the old file or the new one. Throws io_error.
  void save(const std::filesystem::path& file) const {
    safetensors_writer writer;
    writer.set_metadata("format", format);
    writer.set_metadata("version", version);
    for (const auto& [name, value] : required_) writer.set_metadata("required." + name, value);
    for (const range& r : ranges_) {
      if (r.fetch) r.fetch();
      writer.add(r.name, r.type, r.shape, r.bytes);
    }
    writer.write(file);
  }

  /// Restores every range, after all of the file has been checked: nothing changes if it throws. Throws
  /// io_error and format_error, which names what does not fit.
  void load(const std::filesystem::path& file) const {
    const safetensors_file source(file);
    const auto check = [&](const std::string& key, std::string_view want) {
      const auto found = source.metadata().find(key);
      if (found == source.metadata().end())
        throw format_error(source.path().string(), "metadata " + detail::in_quotes(key),
                           detail::in_quotes(want), "none");
      if (found->second != want)
        throw format_error(source.path().string(), "metadata " + detail::in_quotes(key),
                           detail::in_quotes(want), detail::in_quotes(found->second));
    };
    check("format", format);
    check("version", version);
    for (const auto& [name, value] : required_) check("required." + name, value);
    for (const range& r : ranges_) {
      const tensor_info& t = source.at(r.name);
      if (t.dtype != r.type || t.shape != r.shape)
        throw format_error(source.path().string(), "tensor " + detail::in_quotes(r.name),
                           describe(r.type, r.shape), describe(t.dtype, t.shape));
    }
    for (const tensor_info& t : source.tensors())
      if (!names_.contains(t.name))
        throw format_error(source.path().string(), "tensor " + detail::in_quotes(t.name),
                           "a part of this training state", "one that nothing reads");
    for (const range& r : ranges_) {
      const auto bytes = source.bytes(source.at(r.name));
      if (!bytes.empty()) std::memcpy(r.bytes.data(), bytes.data(), bytes.size());
      if (r.send) r.send();
    }
  }

  /// Bytes of all ranges.
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const range& r : ranges_) sum += r.bytes.size();
    return sum;
  }

 private:
  struct range {
    std::string name;
    dtype type;
    std::vector<std::int64_t> shape;
    std::span<std::byte> bytes;
    std::function<void()> fetch = {}, send = {};  ///< the ways to and from a device
  };

  void add_range(std::string name, dtype type, std::vector<std::int64_t> shape, std::span<std::byte> bytes) {
    if (!names_.insert(name).second)
      throw contract_error("training_state::add", "name", "a new name",
                           "a second " + detail::in_quotes(name));
    ranges_.push_back({std::move(name), type, std::move(shape), bytes, {}, {}});
  }

  std::vector<range> ranges_;
  std::set<std::string, std::less<>> names_;
  std::map<std::string, std::string> required_;
};

}  // namespace dsv4::io
