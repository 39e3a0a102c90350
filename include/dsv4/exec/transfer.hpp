// SPDX-License-Identifier: Apache-2.0
/// Filling and copying a policy's memory, and the ways between it and the caller's: for code that is written
/// once for host and device. These are the host's; the GPU's are in exec/cuda_transfer.cuh.
#pragma once

#include <dsv4/exec/policy.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace dsv4 {

/// Every element of `to`, which is dense, becomes `value`.
template <policy P, class T, int R>
requires(P::memory == space::host) void fill(const P&, const view<T, R>& to, std::type_identity_t<T> value) {
  std::fill_n(to.data, to.size(), value);
}

/// Copies the caller's elements to `to`, which is dense. They may be changed once this returns; on a device
/// the copy then waits for its turn on the policy's stream.
template <policy P, class T, int R>
requires(P::memory == space::host) void send(const P&, std::type_identity_t<const T*> from,
                                             const view<T, R>& to) {
  std::copy_n(from, to.size(), to.data);
}

/// Copies elements from one dense view to another of as many, both in the policy's memory.
template <policy P, class T, int R>
requires(P::memory == space::host) void copy_values(const P&, const view<const T, R>& from,
                                                    const std::type_identity_t<view<T, R>>& to) {
  std::copy_n(from.data, to.size(), to.data);
}

/// Copies the elements of `from`, which is dense, to the caller. On a device this waits for all that the
/// policy was given before.
template <policy P, class T, int R>
requires(P::memory == space::host) void fetch(const P&, const view<T, R>& from, std::remove_const_t<T>* to) {
  std::copy_n(from.data, from.size(), to);
}

}  // namespace dsv4
