// SPDX-License-Identifier: Apache-2.0
/// From weights in the scalar type to the formats that a numerics policy stores them in.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/ops/quantise.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4 {

namespace detail {
/// Gives the weights of a store their values from wide ones, visited in the same order.
template <class T, policy P, class Store>
class parameter_quantiser {
 public:
  struct source {
    const T* reals = nullptr;
    const std::int32_t* integers = nullptr;
  };
  parameter_quantiser(const P& p, Store& store, const std::vector<source>& sources, bool released)
      : p_(p), store_(store), sources_(sources), released_(released) {}

  /// Weights that stay in the scalar type. Norms become what bf16 holds, as checkpoints store them.
  template <class U, int R>
  requires(!std::is_const_v<U>) void operator()(const parameter_info& info, view<U, R>& v) {
    const source& from = sources_[next_++];
    if constexpr (std::is_same_v<U, T>) {
      const bool round = released_ && info.name.ends_with("norm.weight");
      for (std::int64_t i = 0; i < v.size(); ++i)
        v.data[i] = round ? T(static_cast<float>(bf16(from.reals[i]))) : from.reals[i];
    } else {
      std::copy_n(from.integers, v.size(), v.data);
    }
  }

  template <int R>
  void operator()(const parameter_info& info, view<const bf16, R>& v) {
    const T* from = sources_[next_++].reals;
    std::int64_t count = 1;
    for (int axis = R - 1; axis >= 0; --axis) {
      v.extent[axis] = info.shape[static_cast<std::size_t>(axis)];
      v.stride[axis] = count;
      count *= v.extent[axis];
    }
    bf16* to = store_.template allocate<bf16>(count);
    for (std::int64_t i = 0; i < count; ++i) to[i] = bf16(from[i]);
    v.data = to;
  }

  template <class F>
  void operator()(const parameter_info& info, block_scaled_matrix<const F>& m) {
    m = quantised<F>(sources_[next_++].reals, info.shape[0], info.shape[1]);
  }

  /// Experts are quantised each alone; the groups of an output projection as the one matrix that is stored.
  template <class F>
  void operator()(const parameter_info& info, block_scaled_stack<const F>& stack) {
    const T* from = sources_[next_++].reals;
    const std::int64_t n = info.shape[0], rows = info.shape[1], columns = info.shape[2];
    auto matrices = std::make_shared<std::vector<block_scaled_matrix<const F>>>();
    if (info.name.find('*') != std::string::npos) {
      for (std::int64_t i = 0; i < n; ++i)
        matrices->push_back(quantised<F>(from + i * rows * columns, rows, columns));
    } else {
      const auto whole = quantised<F>(from, n * rows, columns);
      for (std::int64_t i = 0; i < n; ++i) matrices->push_back(whole.rows(i * rows, rows));
    }
    stack.matrices = matrices->data();
    std::copy_n(info.shape.data(), 3, stack.extent);
    store_.keep(std::move(matrices));
  }

 private:
  template <class F>
  block_scaled_matrix<const F> quantised(const T* from, std::int64_t rows, std::int64_t columns) {
    const block_scaled_matrix<F> m(
        store_.template allocate<std::uint8_t>(rows * F::row_bytes(columns)),
        store_.template allocate<e8m0>(F::scale_rows(rows) * F::scale_columns(columns)), rows, columns);
    quantise<F, T>::forward(p_, {{from, rows, columns}}, {m});
    return m;
  }

  const P& p_;
  Store& store_;
  const std::vector<source>& sources_;
  bool released_;
  std::size_t next_ = 0;
};
}  // namespace detail

/// Rounds `wide` to the formats of `Q` into `narrow`, a fresh store: each block by the format's scale rule,
/// norms to bf16 unless all weights stay in the scalar type, everything else unchanged.
template <model_config C, class T, numerics_config Q, policy P>
void quantise_parameters(const P& p, parameter_store<C, T>& wide, parameter_store<C, T, Q>& narrow) {
  using quantiser = detail::parameter_quantiser<T, P, parameter_store<C, T, Q>>;
  std::vector<typename quantiser::source> sources;
  for_each_parameter<C>(wide.views(), [&]<class U, int R>(const parameter_info&, view<U, R>& v) {
    if constexpr (std::is_same_v<U, T>)
      sources.push_back({v.data, nullptr});
    else
      sources.push_back({nullptr, v.data});
  });
  quantiser visit(p, narrow, sources, !storage_types<T, Q>::plain);
  for_each_parameter<C>(narrow.views(), visit);
}

}  // namespace dsv4
