// SPDX-License-Identifier: Apache-2.0
/// The inputs of a quantised matrix product, in the format that the model's numerics ask for.
#pragma once

#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/quantise.hpp>

#include <concepts>
#include <cstdint>

namespace dsv4 {

/// x itself when `X` is its scalar type, else a copy of it in the block-scaled format `X`.
template <class X, class T, space S, policy P>
storage_matrix<const X, S> as_activation(const P& p, basic_workspace<S>& w, const matrix_view<T, S>& x) {
  using scalar = std::remove_const_t<T>;
  if constexpr (std::same_as<X, scalar>) {
    return x;
  } else {
    const std::int64_t rows = x.extent[0], columns = x.extent[1];
    const block_scaled_matrix<X, S> q(take<std::uint8_t>(w, rows, X::row_bytes(columns)).data,
                                      take<e8m0>(w, rows, X::scale_columns(columns)).data, rows, columns);
    quantise<X, scalar, S>::forward(p, {x}, {q});
    return q;
  }
}

}  // namespace dsv4
