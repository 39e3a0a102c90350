// SPDX-License-Identifier: Apache-2.0
/// Filling and copying the GPU's memory, and the ways between it and the caller's (exec/transfer.hpp).
#pragma once

#include <dsv4/exec/cuda.cuh>
#include <dsv4/exec/transfer.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace dsv4 {

namespace detail {
template <class T>
__global__ void __launch_bounds__(256) fill_kernel(T* to, std::int64_t count, T value) {
  wait_for_previous_kernels();
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x)
    to[i] = value;
}
}  // namespace detail

template <class T, int R>
void fill(const exec::cuda& p, const view<T, R, space::device>& to, std::type_identity_t<T> value) {
  const std::int64_t blocks = std::min<std::int64_t>((to.size() + 255) / 256, 65535);
  p.launch("fill", detail::fill_kernel<T>, dim3(static_cast<unsigned>(blocks)), 256, 0, to.data, to.size(),
           value);
}

/// The caller's memory must not be page-locked: the runtime then has its own copy when this returns.
template <class T, int R>
void send(const exec::cuda& p, std::type_identity_t<const T*> from, const view<T, R, space::device>& to) {
  copy_elements<T>(p.stream(), from, to.data, to.size());
}

template <class T, int R>
void copy_values(const exec::cuda& p, const view<const T, R, space::device>& from,
                 const std::type_identity_t<view<T, R, space::device>>& to) {
  copy_elements<T>(p.stream(), from.data, to.data, to.size());
}

template <class T, int R>
void fetch(const exec::cuda& p, const view<T, R, space::device>& from, std::remove_const_t<T>* to) {
  copy_elements<std::remove_const_t<T>>(p.stream(), from.data, to, from.size());
  p.synchronise();
}

}  // namespace dsv4
