// SPDX-License-Identifier: Apache-2.0
/// Non-owning strided views: pointer, extents, strides. The last axis is contiguous.
#pragma once

#include <dsv4/core/macros.hpp>

#include <cstdint>
#include <type_traits>

namespace dsv4 {

/// Where the elements live. Part of every view's type, so that host and device never mix silently.
enum class space { host, device };

/// A trivially copyable view of a `Rank`-dimensional array of `T`; extents and strides are in elements.
/// Invariant: stride[Rank - 1] == 1. An empty view has data == nullptr and all extents 0.
template <class T, int Rank, space S = space::host>
struct view {
  using value_type = std::remove_const_t<T>;
  static constexpr int rank = Rank;
  static constexpr space memory = S;

  T* data = nullptr;
  std::int64_t extent[Rank] = {};
  std::int64_t stride[Rank] = {};

  constexpr view() = default;

  /// A dense row-major array of the given extents.
  template <class... I>
  requires(sizeof...(I) == Rank) DSV4_HOST_DEVICE constexpr view(T* p, I... extents)
      : data(p), extent{static_cast<std::int64_t>(extents)...} {
    std::int64_t step = 1;
    for (int axis = Rank - 1; axis >= 0; --axis) stride[axis] = step, step *= extent[axis];
  }

  /// view<T> converts to view<const T>.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) DSV4_HOST_DEVICE
      constexpr view(const view<U, Rank, S>& other)
      : data(other.data) {
    for (int axis = 0; axis < Rank; ++axis)
      extent[axis] = other.extent[axis], stride[axis] = other.stride[axis];
  }

  template <class... I>
  requires(sizeof...(I) == Rank) DSV4_HOST_DEVICE constexpr T& operator()(I... index) const {
    const std::int64_t at[Rank] = {static_cast<std::int64_t>(index)...};
    std::int64_t offset = 0;
    for (int axis = 0; axis < Rank; ++axis) offset += at[axis] * stride[axis];
    return data[offset];
  }

  DSV4_HOST_DEVICE constexpr std::int64_t size() const {
    std::int64_t n = 1;
    for (int axis = 0; axis < Rank; ++axis) n *= extent[axis];
    return n;
  }
  DSV4_HOST_DEVICE constexpr bool empty() const { return data == nullptr || size() == 0; }

  /// Entry i of the first axis.
  DSV4_HOST_DEVICE constexpr view<T, (Rank > 1 ? Rank - 1 : 1), S> operator[](std::int64_t i) const
      requires(Rank > 1) {
    view<T, Rank - 1, S> sub;
    sub.data = data + i * stride[0];
    for (int axis = 1; axis < Rank; ++axis)
      sub.extent[axis - 1] = extent[axis], sub.stride[axis - 1] = stride[axis];
    return sub;
  }

  /// Entries [begin, begin + count) of the first axis.
  DSV4_HOST_DEVICE constexpr view rows(std::int64_t begin, std::int64_t count) const {
    view sub = *this;
    sub.data = data + begin * stride[0];
    sub.extent[0] = count;
    return sub;
  }

  /// Entries [begin, begin + count) of the last axis.
  DSV4_HOST_DEVICE constexpr view columns(std::int64_t begin, std::int64_t count) const {
    view sub = *this;
    sub.data = data + begin;
    sub.extent[Rank - 1] = count;
    return sub;
  }

  /// The same elements as another dense row-major shape of equal size; this view must be dense.
  template <class... I>
  DSV4_HOST_DEVICE constexpr view<T, static_cast<int>(sizeof...(I)), S> reshape(I... extents) const {
    return view<T, static_cast<int>(sizeof...(I)), S>(data, extents...);
  }

  DSV4_HOST_DEVICE constexpr bool dense() const {
    std::int64_t step = 1;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      if (stride[axis] != step && extent[axis] > 1) return false;
      step *= extent[axis];
    }
    return true;
  }
};

template <class T, space S = space::host>
using vector_view = view<T, 1, S>;
template <class T, space S = space::host>
using matrix_view = view<T, 2, S>;
template <class T, space S = space::host>
using tensor_view = view<T, 3, S>;

static_assert(std::is_trivially_copyable_v<matrix_view<float>> &&
              std::is_standard_layout_v<matrix_view<float>>);

}  // namespace dsv4
