// SPDX-License-Identifier: Apache-2.0
/// Memory of the GPU: owning buffers, workspaces, and the ways between host and device.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cuda_error.cuh>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/tensor/buffer.hpp>
#include <dsv4/tensor/view.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace dsv4 {

template <>
struct workspace_memory<space::device> {
  static void* allocate(std::size_t bytes) {
    void* p = nullptr;
    detail::check_cuda(cudaMalloc(&p, bytes), "workspace");
    return p;
  }
  static void release(void* p) { cudaFree(p); }
};

using device_workspace = basic_workspace<space::device>;

/// On the current device: 256-byte aligned. The elements can only be reached by kernels and copies.
template <class T>
class buffer<T, space::device> {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  buffer() = default;
  /// `count` elements, zeroed on every stream's behalf before this returns. Throws cuda_error.
  explicit buffer(std::int64_t count) : size_(count) {
    if (count == 0) return;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    data_.reset(static_cast<T*>(workspace_memory<space::device>::allocate(bytes)));
    detail::check_cuda(cudaMemset(data_.get(), 0, bytes), "buffer");
    detail::check_cuda(cudaStreamSynchronize(nullptr), "buffer");
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }

  /// The whole buffer as a dense view; the extents' product must not exceed size().
  template <class... I>
  view<T, static_cast<int>(sizeof...(I)), space::device> as(I... extents) {
    return {data(), extents...};
  }
  template <class... I>
  view<const T, static_cast<int>(sizeof...(I)), space::device> as(I... extents) const {
    return {data(), extents...};
  }

 private:
  struct release {
    void operator()(T* p) const { workspace_memory<space::device>::release(p); }
  };
  std::unique_ptr<T, release> data_;
  std::int64_t size_ = 0;
};

template <class T>
using device_buffer = buffer<T, space::device>;

/// Copies `count` elements between host and device in the order of `stream`, in whichever direction. The
/// host's memory must live until the stream has come so far.
template <class T>
void copy_elements(cudaStream_t stream, const T* from, T* to, std::int64_t count) {
  if (count == 0) return;
  detail::check_cuda(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDefault, stream),
      "copy_elements");
}

/// A copy on the device. Returns when the host's memory may be reused.
template <class T>
device_buffer<T> to_device(cudaStream_t stream, const buffer<T>& from) {
  device_buffer<T> copy(from.size());
  copy_elements(stream, from.data(), copy.data(), from.size());
  detail::check_cuda(cudaStreamSynchronize(stream), "to_device");
  return copy;
}

/// A copy on the host, of what the buffer holds when `stream` has done all it was given.
template <class T>
buffer<T> to_host(cudaStream_t stream, const device_buffer<T>& from) {
  buffer<T> copy(from.size());
  copy_elements(stream, from.data(), copy.data(), from.size());
  detail::check_cuda(cudaStreamSynchronize(stream), "to_host");
  return copy;
}

}  // namespace dsv4
