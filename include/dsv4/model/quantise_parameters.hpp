// SPDX-License-Identifier: Apache-2.0
/// From weights in the scalar type to the formats that a numerics policy stores them in.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/ops/quantise.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4 {

namespace detail {
/// What a narrow weight's view, which is only read, points to: all of its matrices, one behind the other.
struct narrow_memory {
  void* codes = nullptr;
  e8m0* scales = nullptr;
};

/// Whether the matrices of a stack are quantised each alone: experts are; the groups of an output projection
/// are the one matrix that is stored.
inline bool quantised_alone(const parameter_info& info) { return info.name.find('*') != std::string::npos; }

/// Gives the narrow weights of a fresh store memory; `memory` gets an entry for every weight.
template <policy P, class Store>
class narrow_binder {
  static constexpr space S = P::memory;

 public:
  narrow_binder(const P& p, Store& store, std::vector<narrow_memory>& memory)
      : p_(p), store_(store), memory_(memory) {}

  /// Weights that stay in the scalar type, and tables, have theirs.
  template <class U, int R>
  requires(!std::is_const_v<U>) void operator()(const parameter_info&, view<U, R, S>&) {
    memory_.push_back({});
  }

  template <int R>
  void operator()(const parameter_info& info, view<const bf16, R, S>& v) {
    std::int64_t count = 1;
    for (int axis = R - 1; axis >= 0; --axis) {
      v.extent[axis] = info.shape[static_cast<std::size_t>(axis)];
      v.stride[axis] = count;
      count *= v.extent[axis];
    }
    bf16* const to = store_.template allocate<bf16>(count);
    v.data = to;
    memory_.push_back({to, nullptr});
  }

  template <class F>
  void operator()(const parameter_info& info, block_scaled_matrix<const F, S>& m) {
    m = allocated<F>(info.shape[0], info.shape[1], F::scale_rows(info.shape[0]));
  }

  template <class F>
  void operator()(const parameter_info& info, block_scaled_stack<const F, S>& stack) {
    using matrix = block_scaled_matrix<const F, S>;
    const std::int64_t n = info.shape[0], rows = info.shape[1], columns = info.shape[2];
    const bool alone = quantised_alone(info);
    const matrix whole =
        allocated<F>(n * rows, columns, alone ? n * F::scale_rows(rows) : F::scale_rows(n * rows));
    std::vector<matrix> matrices;
    for (std::int64_t i = 0; i < n; ++i)
      matrices.push_back(alone ? matrix(whole.row(i * rows),
                                        whole.scales + i * F::scale_rows(rows) * whole.scale_row_stride, rows,
                                        columns)
                               : whole.rows(i * rows, rows));
    matrix* const table = store_.template allocate<matrix>(n);
    send(p_, matrices.data(), vector_view<matrix, S>(table, n));
    stack.matrices = table;
    std::copy_n(info.shape.data(), 3, stack.extent);
  }

 private:
  template <class F>
  block_scaled_matrix<F, S> allocated(std::int64_t rows, std::int64_t columns, std::int64_t scale_rows) {
    const block_scaled_matrix<F, S> m(store_.template allocate<std::uint8_t>(rows * F::row_bytes(columns)),
                                      store_.template allocate<e8m0>(scale_rows * F::scale_columns(columns)),
                                      rows, columns);
    memory_.push_back({m.codes, m.scales});
    return m;
  }

  const P& p_;
  Store& store_;
  std::vector<narrow_memory>& memory_;
};

/// Gives the weights of a store their values from wide ones, visited in the same order.
template <class T, policy P>
class parameter_rounder {
  static constexpr space S = P::memory;

 public:
  struct source {
    const T* reals = nullptr;
    const std::int32_t* integers = nullptr;
  };
  parameter_rounder(const P& p, const std::vector<source>& sources, const std::vector<narrow_memory>& memory,
                    bool released)
      : p_(p), sources_(sources), memory_(memory), released_(released) {}

  /// Weights that stay in the scalar type. Norms become what bf16 holds, as checkpoints store them.
  template <class U, int R>
  requires(!std::is_const_v<U>) void operator()(const parameter_info& info, view<U, R, S>& v) {
    const source& from = sources_[next_++];
    const vector_view<U, S> to(v.data, v.size());
    if constexpr (!std::is_same_v<U, T>)
      copy_values(p_, vector_view<const U, S>(from.integers, v.size()), to);
    else if (released_ && info.name.ends_with("norm.weight"))
      round_to_bf16<T, T, S>::forward(p_, {{from.reals, v.size()}}, {to});
    else
      copy_values(p_, vector_view<const U, S>(from.reals, v.size()), to);
  }

  template <int R>
  void operator()(const parameter_info&, view<const bf16, R, S>& v) {
    const narrow_memory& to = memory_[next_];
    const T* const from = sources_[next_++].reals;
    round_to_bf16<T, bf16, S>::forward(p_, {{from, v.size()}}, {{static_cast<bf16*>(to.codes), v.size()}});
  }

  template <class F>
  void operator()(const parameter_info&, block_scaled_matrix<const F, S>& m) {
    rounded<F>(1, m.extent[0], m.extent[1]);
  }

  template <class F>
  void operator()(const parameter_info& info, block_scaled_stack<const F, S>& stack) {
    const std::int64_t n = stack.extent[0], rows = stack.extent[1], columns = stack.extent[2];
    // Matrices of whole rows of blocks are quantised alone in any case.
    if (quantised_alone(info) && rows % F::block_rows != 0)
      rounded<F>(n, rows, columns);
    else
      rounded<F>(1, n * rows, columns);
  }

 private:
  template <class F>
  void rounded(std::int64_t n, std::int64_t rows, std::int64_t columns) {
    const narrow_memory& to = memory_[next_];
    const T* const from = sources_[next_++].reals;
    for (std::int64_t i = 0; i < n; ++i) {
      const block_scaled_matrix<F, S> m(
          static_cast<std::uint8_t*>(to.codes) + i * rows * F::row_bytes(columns),
          to.scales + i * F::scale_rows(rows) * F::scale_columns(columns), rows, columns);
      quantise<F, T, S>::forward(p_, {{from + i * rows * columns, rows, columns}}, {m});
    }
  }

  const P& p_;
  const std::vector<source>& sources_;
  const std::vector<narrow_memory>& memory_;
  bool released_;
  std::size_t next_ = 0;
};

/// Memory for the narrow weights of `narrow`, a fresh store.
template <model_config C, class T, numerics_config Q, space S, policy P>
std::vector<narrow_memory> bind_narrow(const P& p, parameter_store<C, T, Q, S>& narrow) {
  std::vector<narrow_memory> memory;
  for_each_parameter<C>(narrow.views(), narrow_binder<P, parameter_store<C, T, Q, S>>(p, narrow, memory));
  return memory;
}

template <model_config C, class T, numerics_config Q, space S, policy P>
void round_parameters(const P& p, parameter_store<C, T, numerics::float32, S>& wide,
                      parameter_store<C, T, Q, S>& narrow, const std::vector<narrow_memory>& memory) {
  using rounder = parameter_rounder<T, P>;
  std::vector<typename rounder::source> sources;
  for_each_parameter<C>(wide.views(), [&]<class U, int R>(const parameter_info&, view<U, R, S>& v) {
    if constexpr (std::is_same_v<U, T>)
      sources.push_back({v.data, nullptr});
    else
      sources.push_back({nullptr, v.data});
  });
  for_each_parameter<C>(narrow.views(), rounder(p, sources, memory, !storage_types<T, Q>::plain));
}
}  // namespace detail

/// Rounds `wide` to the formats of `Q` into `narrow`, a fresh store: each block by the format's scale rule,
/// norms to bf16 unless all weights stay in the scalar type, everything else unchanged. The same bits under
/// every policy; on a device in the order of its stream.
template <model_config C, class T, numerics_config Q, space S, policy P>
void quantise_parameters(const P& p, parameter_store<C, T, numerics::float32, S>& wide,
                         parameter_store<C, T, Q, S>& narrow) {
  detail::round_parameters(p, wide, narrow, detail::bind_narrow(p, narrow));
}

/// Weights that are rounded again and again, as quantise_parameters does, into the same memory.
template <model_config C, class T, numerics_config Q, space S = space::host>
class rounded_parameters {
 public:
  /// The views stay valid, and change with the next call.
  template <policy P>
  const model_parameters<T, Q, S>& round(const P& p, parameter_store<C, T, numerics::float32, S>& wide) {
    if (memory_.empty()) memory_ = detail::bind_narrow(p, narrow_.emplace());
    detail::round_parameters(p, wide, *narrow_, memory_);
    return views();
  }
  /// Of what was rounded last; there must have been a call.
  const model_parameters<T, Q, S>& views() const { return narrow_->views(); }

 private:
  std::optional<parameter_store<C, T, Q, S>> narrow_;
  std::vector<detail::narrow_memory> memory_;
};

}  // namespace dsv4
