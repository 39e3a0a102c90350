// SPDX-License-Identifier: Apache-2.0
/// Weights from safetensors, strictly: every parameter set, every tensor used, every shape and dtype checked.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checkpoint_layout.hpp>
#include <dsv4/io/safetensors.hpp>
#include <dsv4/io/safetensors_index.hpp>
#include <dsv4/io/tensor_names.hpp>
#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace dsv4::io {

struct load_options {
  /// What may stand before a weight's name in the file, tried in this order.
  std::vector<std::string> prefixes = {"", "model."};
  /// Tensors whose names begin with one of these may stay unread; all others are an error.
  std::vector<std::string> ignored = {};
  /// Whether to look for NaN among the scales of routed experts too, which reads 3% of their bytes.
  bool check_expert_scales = true;
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
    else
      to[i] = static_cast<T>(static_cast<float>(bf16::from_bits(read_as<std::uint16_t>(p))));
  }
}

/// Reads tensors of a source (a file or a folder) into weights, and remembers which it has read.
template <class Source, class Store>
class parameter_reader {
 public:
  /// With `owner`, the source's, narrow weights are bound to its memory, which `store` then keeps.
  parameter_reader(const Source& source, std::shared_ptr<const void> owner, Store& store,
                   const load_options& options, std::int64_t experts)
      : source_(source),
        owner_(std::move(owner)),
        store_(store),
        options_(options),
        where_(source.path().string()),
        experts_(experts) {
    if (owner_) store_.keep(owner_);
  }

  /// Weights in the scalar type, and tables: read or decoded into the memory that is there.
  template <class T, int R>
  requires(!std::is_const_v<T>) void operator()(const parameter_info& info, view<T, R>& target) {
    if constexpr (R == 1) {
      read(find_weight(info.name), info.shape, info.name, target.data, target.size(), 0);
    } else if (!read_fused_experts(info, target.data)) {
      for_each_part(info,
                    [&](const std::string& name, std::int64_t rows, std::int64_t columns, std::int64_t i) {
                      const tensor_info& t = find_weight(name);
                      T* to = target.data + i * rows * columns;
                      if (std::is_floating_point_v<T> && t.dtype == dtype::f8_e4m3)
                        decode<fp8_weight>(t, rows, columns, to);
                      else if (std::is_floating_point_v<T> && t.dtype == dtype::i8)
                        decode<mxfp4>(t, rows, columns, to);
                      else
                        read(t, {rows, columns}, name, to, rows * columns, 0);
                    });
    }
  }

  template <int R>
  void operator()(const parameter_info& info, view<const bf16, R>& target) {
    std::int64_t count = 1;
    for (std::int64_t e : info.shape) count *= e;
    bf16* copy = nullptr;
    for_each_part(info,
                  [&](const std::string& name, std::int64_t rows, std::int64_t columns, std::int64_t i) {
                    const tensor_info& t = find_weight(name);
                    const auto bytes = checked(t, dtype::bf16, {rows, columns});
                    const bool aligned = reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(bf16) == 0;
                    if (owner_ && aligned && info.name.find('*') == std::string::npos) {
                      target.data = reinterpret_cast<const bf16*>(bytes.data());
                      return;
                    }
                    if (!copy) target.data = copy = store_.template allocate<bf16>(count);
                    std::memcpy(copy + i * rows * columns, bytes.data(), bytes.size());
                  });
    std::int64_t step = 1;
    for (int axis = R - 1; axis >= 0; step *= target.extent[axis], --axis) {
      target.extent[axis] = info.shape[static_cast<std::size_t>(axis)];
      target.stride[axis] = step;
    }
  }

  template <class F>
  void operator()(const parameter_info& info, block_scaled_matrix<const F>& target) {
    target = kept<F>(find_weight(info.name), info.shape[0], info.shape[1], true);
  }

  template <class F>
  void operator()(const parameter_info& info, block_scaled_stack<const F>& target) {
    auto matrices = std::make_shared<std::vector<block_scaled_matrix<const F>>>();
    const bool experts = info.name.find('*') != std::string::npos;
    for_each_part(info, [&](const std::string& name, std::int64_t rows, std::int64_t columns, std::int64_t) {
      const auto m = kept<F>(find_weight(name), rows, columns, !experts || options_.check_expert_scales);
      if (experts)
        matrices->push_back(m);
      else
        for (std::int64_t g = 0; g < info.shape[0]; ++g)
          matrices->push_back(m.rows(g * info.shape[1], info.shape[1]));
    });
    target.matrices = matrices->data();
    std::copy_n(info.shape.data(), 3, target.extent);
    store_.keep(std::move(matrices));
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
  /// The tensor of the released or Hugging Face name.
  const tensor_info& find_weight(const std::string& name) const {
    if (const tensor_info* t = find(name)) return *t;
    if (const auto alias = hugging_face_name(name))
      if (const tensor_info* t = find(*alias)) return *t;
    throw format_error(where_, "tensor \"" + name + "\"", "a tensor of this or its Hugging Face name",
                       "none");
  }
  static std::string item(const tensor_info& t) { return "tensor \"" + t.name + "\""; }

  /// The data of `t`, which must have this dtype and shape.
  std::span<const std::byte> checked(const tensor_info& t, dtype type,
                                     const std::vector<std::int64_t>& shape) {
    if (t.dtype != type)
      throw format_error(where_, item(t), "dtype " + std::string(dtype_name(type)), dtype_name(t.dtype));
    if (t.shape != shape)
      throw format_error(where_, item(t), "shape " + shape_text(shape), shape_text(t.shape));
    used_.insert(t.name);
    return source_.bytes(t);
  }

  /// Elements and scales of one matrix, where they are.
  template <class F>
  block_scaled_matrix<const F> mapped(const tensor_info& elements, std::int64_t rows, std::int64_t columns,
                                      bool check_scales = true) {
    const tensor_spec e = element_spec<F>(elements.name, rows, columns);
    const auto codes = checked(elements, e.dtype, e.shape);
    const tensor_spec s = scale_spec<F>(elements.name, rows, columns);
    const tensor_info* scales = source_.find(s.name);
    if (!scales) scales = source_.find(elements.name + "_scale_inv");  // as Hugging Face calls it
    if (!scales)
      throw format_error(where_, "tensor \"" + s.name + "\"", "the scales of " + item(elements), "none");
    const auto scale_codes = checked(*scales, s.dtype, s.shape);
    if (check_scales)
      if (const void* nan = std::memchr(scale_codes.data(), 0xFF, scale_codes.size()))
        throw format_error(where_,
                           item(*scales) + " element " +
                               std::to_string(static_cast<const std::byte*>(nan) - scale_codes.data()),
                           "a power of two", "NaN (0xFF)");
    return {reinterpret_cast<const std::uint8_t*>(codes.data()),
            reinterpret_cast<const e8m0*>(scale_codes.data()), rows, columns};
  }
  /// The same, in memory that the store keeps.
  template <class F>
  block_scaled_matrix<const F> kept(const tensor_info& elements, std::int64_t rows, std::int64_t columns,
                                    bool check_scales) {
    auto m = mapped<F>(elements, rows, columns, check_scales);
    if (owner_) return m;
    m.codes = copied(m.codes, rows * m.row_stride);
    m.scales = copied(m.scales, F::scale_rows(rows) * m.scale_row_stride);
    return m;
  }
  template <class U>
  const U* copied(const U* from, std::int64_t count) {
    U* copy = store_.template allocate<U>(count);
    std::copy_n(from, count, copy);
    return copy;
  }

  template <class F, class T>
  void decode(const tensor_info& t, std::int64_t rows, std::int64_t columns, T* to) {
    if constexpr (std::is_floating_point_v<T>) {
      const auto m = mapped<F>(t, rows, columns);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c) to[r * columns + c] = static_cast<T>(m(r, c));
    }
  }

  /// Hugging Face stacks all experts: w1 above w3 in one tensor, w2 in another. False when there is none.
  template <class T>
  bool read_fused_experts(const parameter_info& info, T* to) {
    const auto fused = fused_expert_name(info.name);
    const tensor_info* stack = fused ? find(*fused) : nullptr;
    if (!stack) return false;
    const bool half = info.name.find(".w2.") == std::string::npos;
    const std::int64_t experts = info.shape[0], each = info.shape[1] * info.shape[2];
    const std::int64_t skip = info.name.find(".w3.") != std::string::npos ? each : 0,
                       step = half ? 2 * each : each;
    for (std::int64_t e = 0; e < experts; ++e)
      read(*stack, {experts, half ? 2 * info.shape[1] : info.shape[1], info.shape[2]}, info.name,
           to + e * each, each, e * step + skip);
    return true;
  }

  /// `count` elements of `t` from element `skip` on; `t` as a whole must have `shape`.
  template <class T>
  void read(const tensor_info& t, const std::vector<std::int64_t>& shape, const std::string& name, T* to,
            std::int64_t count, std::int64_t skip) {
    if (t.shape != shape)
      throw format_error(where_, item(t), "shape " + shape_text(shape), shape_text(t.shape));
    if constexpr (std::is_integral_v<T>) {
      if (t.dtype != dtype::i64 && t.dtype != dtype::i32)
        throw format_error(where_, item(t), "dtype I64 or I32", dtype_name(t.dtype));
      const auto bytes = source_.bytes(t);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t id = t.dtype == dtype::i64 ? read_as<std::int64_t>(bytes.data() + 8 * i)
                                                      : read_as<std::int32_t>(bytes.data() + 4 * i);
        if (id < 0 || id >= experts_)
          throw format_error(where_, item(t) + " element " + std::to_string(i),
                             "an expert from 0 to " + std::to_string(experts_ - 1), std::to_string(id));
        to[i] = static_cast<T>(id);
      }
    } else {
      const bool wide = must_be_wide(name);
      if (t.dtype != dtype::f32 && t.dtype != dtype::f64 && (wide || t.dtype != dtype::bf16))
        throw format_error(where_, item(t), wide ? "dtype F32 or F64" : "dtype F32, F64 or BF16",
                           dtype_name(t.dtype));
      convert_reals(t.dtype,
                    source_.bytes(t).subspan(static_cast<std::size_t>(skip * dtype_bits(t.dtype) / 8)), to,
                    count);
    }
    used_.insert(t.name);
  }

  const Source& source_;
  std::shared_ptr<const void> owner_;
  Store& store_;
  const load_options& options_;
  std::string where_;
  std::int64_t experts_;  ///< routed experts, the range of hash tables
  std::set<std::string, std::less<>> used_;
};

}  // namespace detail

/// Reads the weights of a model of configuration `C` from a safetensors_file or safetensors_checkpoint, under
/// released or Hugging Face names. A weight in the scalar type may be stored as F32, F64, BF16, FP8 or FP4
/// with its scales (then decoded); one in a narrow format only as that. Hash tables are I64 or I32. Throws
/// format_error naming file and tensor for a missing, unread, misshapen or mistyped tensor, a table entry
/// that is no expert, or a scale that is NaN; `store` may then be partly filled.
template <model_config C, class T, numerics_config Q, class Source>
requires requires(const Source& s) { s.path(); }
void load_parameters(const Source& source, parameter_store<C, T, Q>& store,
                     const load_options& options = {}) {
  detail::parameter_reader reader(source, nullptr, store, options, C.moe.n_routed_experts);
  for_each_parameter<C>(store.views(), reader);
  reader.finish();
}

/// The same, but narrow weights stay where they are in the source's memory, mapped from disk perhaps, which
/// `store` keeps alive.
template <model_config C, class T, numerics_config Q, class Source>
void load_parameters(const std::shared_ptr<Source>& source, parameter_store<C, T, Q>& store,
                     const load_options& options = {}) {
  detail::parameter_reader reader(*source, source, store, options, C.moe.n_routed_experts);
  for_each_parameter<C>(store.views(), reader);
  reader.finish();
}

}  // namespace dsv4::io
