// SPDX-License-Identifier: Apache-2.0
/// Scratch memory that the caller owns and blocks borrow.
#pragma once

#include <dsv4/tensor/view.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace dsv4 {

/// How a workspace of memory space `S` comes by its memory: `allocate(bytes)` and `release(pointer)`, aligned
/// for every element type. The device's is in exec/cuda.cuh.
template <space S>
struct workspace_memory;

template <>
struct workspace_memory<space::host> {
  static constexpr std::align_val_t alignment{64};
  static void* allocate(std::size_t bytes) { return ::operator new(bytes, alignment); }
  static void release(void* p) { ::operator delete(p, alignment); }
};

template <space S>
class workspace_scope;

/// A stack of memory in space `S`. Blocks take views from it inside a `workspace_scope` and give them back at
/// its end. It grows when a larger call comes (never while the same sizes repeat); `high_water()` tells what
/// was needed. On the device it serves one stream at a time.
template <space S>
class basic_workspace {
 public:
  basic_workspace() = default;
  /// Reserves `bytes` at once, so that calls which need no more never allocate.
  explicit basic_workspace(std::size_t bytes) { blocks_.push_back(block(bytes)); }

  /// A dense uninitialised array.
  template <class T, class... I>
  view<T, static_cast<int>(sizeof...(I)), S> take(I... extents) {
    const std::int64_t count = (std::int64_t{1} * ... * static_cast<std::int64_t>(extents));
    return {reinterpret_cast<T*>(raw(static_cast<std::size_t>(count) * sizeof(T))), extents...};
  }

  std::size_t high_water() const { return high_water_; }
  std::size_t capacity() const {
    std::size_t n = 0;
    for (const auto& b : blocks_) n += b.size;
    return n;
  }

  using scope = workspace_scope<S>;

  /// From here to release_hold() scopes give nothing back at their ends: somebody may still be using it.
  void hold() { ++holds_; }
  void release_hold() { --holds_; }

 private:
  friend class workspace_scope<S>;
  static constexpr std::size_t alignment = S == space::host ? 64 : 256;
  struct release {
    void operator()(std::byte* p) const { workspace_memory<S>::release(p); }
  };
  struct block {
    explicit block(std::size_t n)
        : data(static_cast<std::byte*>(workspace_memory<S>::allocate(n))), size(n) {}
    std::unique_ptr<std::byte, release> data;
    std::size_t size;
  };

  [[gnu::noinline]] std::byte* raw(std::size_t bytes) {
    bytes = (bytes + alignment - 1) / alignment * alignment;
    while (current_ < blocks_.size() && offset_ + bytes > blocks_[current_].size) ++current_, offset_ = 0;
    if (current_ == blocks_.size())
      blocks_.push_back(block(bytes > (std::size_t{1} << 20) ? bytes : (std::size_t{1} << 20)));
    std::byte* p = blocks_[current_].data.get() + offset_;
    offset_ += bytes, used_ += bytes;
    if (used_ > high_water_) high_water_ = used_;
    return p;
  }

  std::vector<block> blocks_;
  std::size_t current_ = 0, offset_ = 0, used_ = 0, high_water_ = 0;
  int holds_ = 0;
};

using workspace = basic_workspace<space::host>;

/// w.take<T>(extents...), for code in which the type of `w` depends on a template parameter.
template <class T, space S, class... I>
view<T, static_cast<int>(sizeof...(I)), S> take(basic_workspace<S>& w, I... extents) {
  return w.template take<T>(extents...);
}

/// Everything taken during its life is given back at its end; while the workspace is on hold, at the end of
/// the scope around it.
template <space S>
class workspace_scope {
 public:
  explicit workspace_scope(basic_workspace<S>& w)
      : w_(w), block_(w.current_), offset_(w.offset_), used_(w.used_) {}
  workspace_scope(const workspace_scope&) = delete;
  workspace_scope& operator=(const workspace_scope&) = delete;
  ~workspace_scope() {
    if (w_.holds_ == 0) w_.current_ = block_, w_.offset_ = offset_, w_.used_ = used_;
  }

 private:
  basic_workspace<S>& w_;
  std::size_t block_, offset_, used_;
};

}  // namespace dsv4
