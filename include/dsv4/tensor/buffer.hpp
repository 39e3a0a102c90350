// SPDX-License-Identifier: Apache-2.0
/// Owning host storage, aligned for vector loads.
#pragma once

#include <dsv4/tensor/view.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace dsv4 {

/// A fixed-size array of trivially copyable `T` that owns its memory, in memory space `S`. Move-only.
template <class T, space S = space::host>
class buffer;

/// On the host: 64-byte aligned.
template <class T>
class buffer<T, space::host> {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr std::size_t alignment = 64;

  buffer() = default;
  /// `count` elements, zeroed. Throws std::bad_alloc.
  explicit buffer(std::int64_t count) : size_(count) {
    if (count == 0) return;
    data_.reset(static_cast<T*>(
        ::operator new (static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{alignment})));
    for (std::int64_t i = 0; i < count; ++i) ::new (static_cast<void*>(data_.get() + i)) T{};
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) { return data_.get()[i]; }
  const T& operator[](std::int64_t i) const { return data_.get()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

  /// The whole buffer as a dense view; the extents' product must not exceed size().
  template <class... I>
  view<T, static_cast<int>(sizeof...(I))> as(I... extents) {
    return {data(), extents...};
  }
  template <class... I>
  view<const T, static_cast<int>(sizeof...(I))> as(I... extents) const {
    return {data(), extents...};
  }

 private:
  struct release {
    void operator()(T* p) const { ::operator delete (static_cast<void*>(p), std::align_val_t{alignment}); }
  };
  std::unique_ptr<T, release> data_;
  std::int64_t size_ = 0;
};

}  // namespace dsv4
