// SPDX-License-Identifier: Apache-2.0
/// Weights from and to safetensors, strictly: every parameter set, every tensor used, every shape and dtype
/// checked.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/safetensors.hpp>
#include <dsv4/io/safetensors_index.hpp>
#include <dsv4/io/safetensors_writer.hpp>
#include <dsv4/io/tensor_names.hpp>
#include <dsv4/model/parameters.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsv4::io {

struct load_options {
  /// What may stand before a weight's name in the file, tried in this order.
  std::vector<std::string> prefixes = {"", "model."};
  /// Tensors whose names begin with one of these may stay unread; all others are an error.
  std::vector<std::string> ignored;
};

namespace detail {

inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Reads one element of a checkpoint's storage type.
template <class From>
From read_as(const std::byte* p) {
  From value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <class T>
void convert_reals(dtype type, std::span<const std::byte> from, T* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::byte* p = from.data() + i * dtype_bits(type) / 8;
    if (type == dtype::f32)
      to[i] = static_cast<T>(read_as<float>(p));
    else if (type == dtype::f64)
      to[i] = static_cast<T>(read_as<double>(p));
    else  // bf16: the upper half of a float
      to[i] =
          static_cast<T>(std::bit_cast<float>(static_cast<std::uint32_t>(read_as<std::uint16_t>(p)) << 16));
  }
}

/// What the released checkpoints keep in 32 bits, because less has broken other engines.
inline bool must_be_wide(std::string_view name) {
  return name.ends_with("attn_sink") || name.ends_with(".ape") || name.ends_with("gate.bias") ||
         name.find("hc_") != std::string_view::npos;
}

/// Reads tensors of a source (a file or a folder) into weights, and remembers which it has read.
template <class Source>
class parameter_reader {
 public:
  parameter_reader(const Source& source, const load_options& options)
      : source_(source), options_(options), where_(source.path().string()) {}

  template <class T, int R>
  void operator()(const parameter_info& info, view<T, R>& target) {
    if (info.name.find('*') == std::string::npos) {
      const tensor_info* found = find(info.name);
      if (const auto alias = hugging_face_name(info.name); !found && alias) found = find(*alias);
      if (!found) missing(info.name);
      // Grouped output projections are stored with the groups stacked along the rows.
      std::vector<std::int64_t> shape = info.shape;
      if (R == 3) shape = {shape[0] * shape[1], shape[2]};
      read(*found, shape, info.name, target.data, target.size(), 0);
    } else if (const auto fused = fused_expert_name(info.name); fused && find(*fused)) {
      const tensor_info& stack = *find(*fused);
      const bool half = info.name.find(".w2.") == std::string::npos;  // w1 and w3 share a tensor
      const std::int64_t experts = info.shape[0], each = info.shape[1] * info.shape[2];
      const std::int64_t skip = info.name.find(".w3.") != std::string::npos ? each : 0,
                         step = half ? 2 * each : each;
      for (std::int64_t e = 0; e < experts; ++e)
        read(stack, {experts, half ? 2 * info.shape[1] : info.shape[1], info.shape[2]}, info.name,
             target.data + e * each, each, e * step + skip);
    } else {
      const std::int64_t each = info.shape[1] * info.shape[2];
      for (std::int64_t e = 0; e < info.shape[0]; ++e) {
        std::string name = info.name;
        name.replace(name.find('*'), 1, std::to_string(e));
        const tensor_info* found = find(name);
        if (!found) missing(name);
        read(*found, {info.shape[1], info.shape[2]}, name, target.data + e * each, each, 0);
      }
    }
  }

  /// Throws unless every tensor of the source was read or is to be ignored.
  void finish() const {
    const auto check = [&](const tensor_info& t) {
      if (used_.contains(t.name)) return;
      for (const auto& prefix : options_.ignored)
        if (t.name.starts_with(prefix)) return;
      throw format_error(
          where_, "tensor \"" + t.name + "\"", "a weight of this model",
          std::string(dtype_name(t.dtype)) + " " + shape_text(t.shape) + " that nothing reads");
    };
    if constexpr (requires { source_.tensors(); })
      for (const auto& t : source_.tensors()) check(t);
    else
      source_.for_each([&](const tensor_info& t, std::span<const std::byte>) { check(t); });
  }

 private:
  const tensor_info* find(const std::string& name) const {
    for (const auto& prefix : options_.prefixes)
      if (const auto* t = source_.find(prefix + name)) return t;
    return nullptr;
  }
  [[noreturn]] void missing(const std::string& name) const {
    throw format_error(where_, "tensor \"" + name + "\"", "a tensor of this or its Hugging Face name",
                       "none");
  }

  /// `count` elements of `t` from element `skip` on; `t` as a whole must have `shape`.
  template <class T>
  void read(const tensor_info& t, const std::vector<std::int64_t>& shape, const std::string& name, T* to,
            std::int64_t count, std::int64_t skip) {
    const std::string item = "tensor \"" + t.name + "\"";
    if (t.shape != shape) throw format_error(where_, item, "shape " + shape_text(shape), shape_text(t.shape));
    const auto bytes = source_.bytes(t).subspan(static_cast<std::size_t>(skip * dtype_bits(t.dtype) / 8));
    if constexpr (std::is_integral_v<T>) {
      if (t.dtype != dtype::i64 && t.dtype != dtype::i32)
        throw format_error(where_, item, "dtype I64 or I32", dtype_name(t.dtype));
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t id = t.dtype == dtype::i64 ? read_as<std::int64_t>(bytes.data() + 8 * i)
                                                      : read_as<std::int32_t>(bytes.data() + 4 * i);
        if (id < 0 || id >= experts_)
          throw format_error(where_, item + " element " + std::to_string(i),
                             "an expert from 0 to " + std::to_string(experts_ - 1), std::to_string(id));
        to[i] = static_cast<T>(id);
      }
    } else {
      const bool wide = must_be_wide(name);
      if (t.dtype != dtype::f32 && t.dtype != dtype::f64 && (wide || t.dtype != dtype::bf16))
        throw format_error(where_, item, wide ? "dtype F32 or F64" : "dtype F32, F64 or BF16",
                           dtype_name(t.dtype));
      convert_reals(t.dtype, bytes, to, count);
    }
    used_.insert(t.name);
  }

 public:
  std::int64_t experts_ = 0;  ///< routed experts, the range of hash tables

 private:
  const Source& source_;
  const load_options& options_;
  std::string where_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace detail

/// Reads the weights of a model of configuration `C` from a safetensors_file or safetensors_checkpoint, under
/// released or Hugging Face names, stored as F32, F64 or BF16 (hash tables I64 or I32). Throws format_error
/// naming file and tensor for a missing, unread, misshapen or mistyped tensor; `store` may then be partly
/// filled.
template <model_config C, class T, numerics_config Q, class Source>
void load_parameters(const Source& source, parameter_store<C, T, Q>& store, const load_options& options = {}) {
  detail::parameter_reader<Source> reader(source, options);
  reader.experts_ = C.moe.n_routed_experts;
  for_each_parameter<C>(store.views(), reader);
  reader.finish();
}

/// Writes the weights under their released names, in the storage type `T` (F32 or F64; hash tables I32). The
/// file is written aside and renamed: it is there whole or not at all. Throws io_error.
template <model_config C, class T, numerics_config Q>
void save_parameters(const std::filesystem::path& file, parameter_store<C, T, Q>& store) {
  constexpr dtype real = std::is_same_v<T, double> ? dtype::f64 : dtype::f32;
  safetensors_writer writer;
  for_each_parameter<C>(store.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>& v) {
    const dtype type = std::is_integral_v<U> ? dtype::i32 : real;
    const std::size_t star = info.name.find('*');
    const std::int64_t parts = star == std::string::npos ? 1 : info.shape[0], count = v.size() / parts;
    std::vector<std::int64_t> shape = info.shape;
    if (star != std::string::npos)
      shape.erase(shape.begin());
    else if (R == 3)
      shape = {shape[0] * shape[1], shape[2]};
    for (std::int64_t e = 0; e < parts; ++e) {
      std::string name = info.name;
      if (star != std::string::npos) name.replace(star, 1, std::to_string(e));
      writer.add(name, type, shape,
                 std::as_bytes(std::span(v.data + e * count, static_cast<std::size_t>(count))));
    }
  });
  writer.write(file);
}

}  // namespace dsv4::io
