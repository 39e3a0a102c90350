// SPDX-License-Identifier: Apache-2.0
/// What the matrix products of one kernel are, and whether their operands can be loaded in large pieces.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

/// Matrix g of a stack, or the matrix itself.
template <class WView>
__device__ auto matrix_of(const WView& weight, std::int64_t g) {
  if constexpr (requires { weight.codes; })
    return weight;
  else if constexpr (requires { weight.matrices; })
    return weight[g];
  else if constexpr (WView::rank == 3)
    return weight[g];
  else
    return weight;
}

/// Products y_g = x_g weight_g^T, g < groups, or y_g = x_g weight_g where `Swapped`. Either all have the same
/// rows, `batch` elements apart, or `offsets` says which rows of x and y are theirs.
template <class T, class XView, class WView, bool Swapped = false>
struct gemm_problem {
  XView x;
  WView weight;  ///< a matrix, or a stack of `groups`
  matrix_view<T, space::device> y;
  const std::int64_t* offsets;  ///< null: [0, rows) for all
  std::int64_t x_batch, y_batch;
  int groups;
  bool add = false;  ///< y += instead

  __device__ auto weight_of(int g) const { return matrix_of(weight, g); }
};

/// Whether a matrix can be loaded in pieces of 16 bytes.
template <class M>
bool loadable_16(const M& m) {
  if constexpr (requires { m.codes; }) {
    return m.extent[1] % codes_per_16<typename M::format> == 0 && m.row_stride % 16 == 0 &&
           reinterpret_cast<std::uintptr_t>(m.codes) % 16 == 0;
  } else if constexpr (requires { m.matrices; }) {
    // The table is on the device; whoever makes one aligns its matrices (upload_parameters does).
    return m.extent[2] % codes_per_16<typename M::format> == 0;
  } else {
    return vectorisable(m);
  }
}

/// What the matrix units take, as it is or decoded.
template <class E>
concept sm90_storage = std::same_as<E, bf16> || block_format<E>;

}  // namespace dsv4::detail
