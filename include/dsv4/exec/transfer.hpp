// SPDX-License-Identifier: Apache-2.0
/// Filling and copying a policy's memory, and the ways between it and the caller's: for code that is written
/// once for host and device. These are the host's; the GPU's are in exec/cuda_transfer.cuh.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/exec/policy.hpp>
#include <dsv4/exec/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>
#if DSV4_X86_KERNELS
#include <emmintrin.h>
#endif

namespace dsv4 {
namespace detail {
/// std::fill_n for more than the caches hold: where it can, without reading first what is overwritten.
template <class T>
void fill_past_caches(T* to, std::int64_t n, T value) {
#if DSV4_X86_KERNELS
  if constexpr (std::is_trivially_copyable_v<T> && 16 % sizeof(T) == 0) {
    const auto ragged = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(to) % 16 / sizeof(T));
    const std::int64_t before = std::min(n, ragged);
    std::fill_n(to, before, value);
    to += before, n -= before;
    constexpr std::int64_t each = 16 / sizeof(T);
    alignas(16) T pattern[each];
    std::fill_n(pattern, each, value);
    const __m128i vector = _mm_load_si128(reinterpret_cast<const __m128i*>(pattern));
    for (; n >= each; n -= each, to += each) _mm_stream_si128(reinterpret_cast<__m128i*>(to), vector);
    _mm_sfence();
  }
#endif
  std::fill_n(to, n, value);
}
}  // namespace detail

/// Every element of `to`, which is dense, becomes `value`: on all threads of a policy that has some.
template <policy P, class T, int R>
requires(P::memory == space::host) void fill([[maybe_unused]] const P& p, const view<T, R>& to,
                                             std::type_identity_t<T> value) {
  const bool large = to.size() * std::int64_t{sizeof(T)} > std::int64_t{32} << 20;
  const auto part = [&](std::int64_t begin, std::int64_t end) {
    if (large)
      detail::fill_past_caches<T>(to.data + begin, end - begin, value);
    else
      std::fill_n(to.data + begin, end - begin, value);
  };
  if constexpr (requires { p.parallel_for(to.size(), to.size(), part); })
    p.parallel_for(to.size(), std::int64_t{1} << 16, part);
  else
    part(0, to.size());
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

/// `fetch` into an array of its own.
template <policy P, class T, int R, space S>
std::vector<std::remove_const_t<T>> fetched(const P& p, const view<T, R, S>& from) {
  std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(from.size()));
  fetch(p, from, values.data());
  return values;
}

/// The caller's elements where the policy can read them: on the host where they are, on a device in a copy
/// that is taken from `w`.
template <policy P, space S, class T>
vector_view<const T, S> reachable(const P& p, basic_workspace<S>& w, const vector_view<const T>& from) {
  if constexpr (S == space::host) {
    return from;
  } else {
    const auto copy = w.template take<T>(from.extent[0]);
    send(p, from.data, copy);
    return copy;
  }
}
/// The same of a vector or span.
template <policy P, space S, class Range>
requires requires(const Range& from) { std::span(from); }
auto reachable(const P& p, basic_workspace<S>& w, const Range& from) {
  const std::span all(from);
  using value = typename decltype(all)::value_type;
  return reachable(p, w, vector_view<const value>(all.data(), static_cast<std::int64_t>(all.size())));
}

}  // namespace dsv4
