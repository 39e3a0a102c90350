// SPDX-License-Identifier: Apache-2.0
/// Stands in for a workspace where only the size is asked for of what would be taken from one.
#pragma once

#include <dsv4/exec/workspace.hpp>

#include <cstdint>

namespace dsv4 {

/// Adds up what a workspace of space `S` would hand out, alignment included; its views point nowhere.
template <space S = space::host>
struct byte_count {
  static constexpr std::int64_t alignment = S == space::host ? 64 : 256;
  std::int64_t bytes = 0;
};

template <class T, space S, class... I>
view<T, static_cast<int>(sizeof...(I)), S> take(byte_count<S>& count, I... extents) {
  const std::int64_t bytes =
      (std::int64_t{1} * ... * static_cast<std::int64_t>(extents)) * static_cast<std::int64_t>(sizeof(T));
  count.bytes += (bytes + count.alignment - 1) / count.alignment * count.alignment;
  return {nullptr, extents...};
}

}  // namespace dsv4
