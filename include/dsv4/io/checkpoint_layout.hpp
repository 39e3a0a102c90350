// SPDX-License-Identifier: Apache-2.0
/// How a model's weights lie in a released checkpoint: names, dtypes and shapes (docs/checkpoints.md).
/// Told once, for loading, saving and planning.
#pragma once

#include <dsv4/io/dtype.hpp>
#include <dsv4/model/parameters.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4::io {

/// A tensor that a checkpoint must hold.
struct tensor_spec {
  std::string name;
  io::dtype dtype;
  std::vector<std::int64_t> shape;
};

/// What released checkpoints keep in 32 bits, because less has broken other engines.
inline bool must_be_wide(std::string_view name) {
  return name.ends_with("attn_sink") || name.ends_with(".ape") || name.ends_with("gate.bias") ||
         name.find("hc_") != std::string_view::npos;
}

namespace detail {

/// Calls f(name, rows, columns, i) for the tensors that hold a matrix or stack of matrices: each expert has
/// its own, groups lie below each other in one.
template <class F>
void for_each_part(const parameter_info& info, const F& f) {
  const std::size_t star = info.name.find('*');
  const auto& s = info.shape;
  if (star == std::string::npos) {
    f(info.name, s.size() == 3 ? s[0] * s[1] : s[0], s.back(), std::int64_t{0});
    return;
  }
  for (std::int64_t e = 0; e < s[0]; ++e) {
    std::string name = info.name;
    name.replace(star, 1, std::to_string(e));
    f(name, s[1], s[2], e);
  }
}

/// The name of the scales of the weight `name`.
inline std::string scale_name(std::string_view name) {
  constexpr std::string_view weight = "weight";
  return std::string(name.ends_with(weight) ? name.substr(0, name.size() - weight.size()) : name) + "scale";
}

/// dtype and shape of the elements of a block-scaled matrix: two FP4 elements make an I8.
template <block_format F>
tensor_spec element_spec(std::string name, std::int64_t rows, std::int64_t columns) {
  return {std::move(name), F::packed ? dtype::i8 : dtype::f8_e4m3, {rows, F::row_bytes(columns)}};
}
template <block_format F>
tensor_spec scale_spec(std::string_view name, std::int64_t rows, std::int64_t columns) {
  return {scale_name(name), dtype::f8_e8m0, {F::scale_rows(rows), F::scale_columns(columns)}};
}

/// The storage of a weight, from its view.
template <class V>
struct weight_storage;
template <class U, int R, space S>
struct weight_storage<view<U, R, S>> {
  using type = std::remove_const_t<U>;
};
template <class F, space S>
struct weight_storage<block_scaled_matrix<F, S>> {
  using type = std::remove_const_t<F>;
};
template <class F, space S>
struct weight_storage<block_scaled_stack<F, S>> {
  using type = std::remove_const_t<F>;
};
template <class V>
using weight_storage_t = typename weight_storage<V>::type;

/// The dtype of a weight that the model holds as `U`.
template <class T, numerics_config Q, class U>
dtype plain_dtype(std::string_view name) {
  if (std::is_integral_v<U>) return dtype::i64;
  if (std::is_same_v<U, bf16>) return dtype::bf16;
  if (!storage_types<T, Q>::plain) return name.ends_with("norm.weight") ? dtype::bf16 : dtype::f32;
  return std::is_same_v<T, double> ? dtype::f64 : dtype::f32;
}

}  // namespace detail

/// Calls f(tensor_spec) for every tensor of a checkpoint of configuration `C` whose weights are stored as `Q`
/// says; those in the scalar type `T` as F32 or F64, or in released checkpoints as BF16 where they are norms.
template <model_config C, class T, numerics_config Q, class F>
void for_each_tensor(const F& f) {
  model_parameters<T, Q> views;
  for_each_parameter<C>(views, [&]<class V>(const parameter_info& info, V&) {
    using W = detail::weight_storage_t<V>;
    if (info.shape.size() == 1) {
      f(tensor_spec{info.name, detail::plain_dtype<T, Q, W>(info.name), info.shape});
      return;
    }
    detail::for_each_part(info, [&](const std::string& name, std::int64_t rows, std::int64_t columns, auto) {
      if constexpr (block_format<W>) {
        f(detail::element_spec<W>(name, rows, columns));
        f(detail::scale_spec<W>(name, rows, columns));
      } else {
        f(tensor_spec{name, detail::plain_dtype<T, Q, W>(name), {rows, columns}});
      }
    });
  });
}

}  // namespace dsv4::io
