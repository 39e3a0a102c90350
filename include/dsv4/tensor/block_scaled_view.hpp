// SPDX-License-Identifier: Apache-2.0
/// Views of block-scaled matrices, and which view a weight of each storage type has.
#pragma once

#include <dsv4/numeric/block_scaled.hpp>
#include <dsv4/tensor/view.hpp>

#include <cstdint>
#include <type_traits>

namespace dsv4 {

/// A non-owning view of a matrix in format `F` (const F: not to be written).
template <class F, space S = space::host>
struct block_scaled_matrix {
  using format = std::remove_const_t<F>;
  static constexpr space memory = S;
  template <class U>
  using pointer = std::conditional_t<std::is_const_v<F>, const U*, U*>;

  pointer<std::uint8_t> codes = nullptr;
  pointer<e8m0> scales = nullptr;
  std::int64_t extent[2] = {};        ///< rows and columns, in elements
  std::int64_t row_stride = 0;        ///< bytes from one row of elements to the next
  std::int64_t scale_row_stride = 0;  ///< scales from one row of blocks to the next
  std::int64_t skipped_rows = 0;      ///< rows of the first row of blocks that lie before row 0

  constexpr block_scaled_matrix() = default;
  /// Dense elements and scales.
  DSV4_HOST_DEVICE constexpr block_scaled_matrix(pointer<std::uint8_t> codes_, pointer<e8m0> scales_,
                                                 std::int64_t rows_, std::int64_t columns_)
      : codes(codes_),
        scales(scales_),
        extent{rows_, columns_},
        row_stride(format::row_bytes(columns_)),
        scale_row_stride(format::scale_columns(columns_)) {}

  template <class U>
  requires(std::is_same_v<const U, F> && !std::is_const_v<U>) DSV4_HOST_DEVICE
      constexpr block_scaled_matrix(const block_scaled_matrix<U, S>& other)
      : codes(other.codes),
        scales(other.scales),
        extent{other.extent[0], other.extent[1]},
        row_stride(other.row_stride),
        scale_row_stride(other.scale_row_stride),
        skipped_rows(other.skipped_rows) {}

  DSV4_HOST_DEVICE constexpr pointer<std::uint8_t> row(std::int64_t r) const {
    return codes + r * row_stride;
  }
  /// The scales of the blocks that row r crosses.
  DSV4_HOST_DEVICE constexpr pointer<e8m0> row_scales(std::int64_t r) const {
    return scales + (skipped_rows + r) / format::block_rows * scale_row_stride;
  }
  /// The value, exact up to float's range.
  DSV4_HOST_DEVICE constexpr float operator()(std::int64_t r, std::int64_t c) const {
    return static_cast<float>(format::get(row(r), c)) *
           static_cast<float>(row_scales(r)[c / format::block_columns]);
  }
  DSV4_HOST_DEVICE constexpr block_scaled_matrix rows(std::int64_t begin, std::int64_t count) const {
    block_scaled_matrix m = *this;
    const std::int64_t at = skipped_rows + begin;
    m.codes += begin * row_stride;
    m.scales += at / format::block_rows * scale_row_stride;
    m.skipped_rows = at % format::block_rows;
    m.extent[0] = count;
    return m;
  }
};

/// Equally sized matrices that may lie anywhere, such as the experts of a layer in a mapped file.
template <class F, space S = space::host>
struct block_scaled_stack {
  using format = std::remove_const_t<F>;
  static constexpr space memory = S;
  using matrix = block_scaled_matrix<const format, S>;

  const matrix* matrices = nullptr;  ///< extent[0] of them
  std::int64_t extent[3] = {};       ///< matrices, rows, columns

  DSV4_HOST_DEVICE constexpr const matrix& operator[](std::int64_t i) const { return matrices[i]; }
};

namespace detail {
template <class W, space S>
struct storage_views {
  using matrix = matrix_view<W, S>;
  using stack = tensor_view<W, S>;
};
template <block_format W, space S>
struct storage_views<W, S> {
  using matrix = block_scaled_matrix<W, S>;
  using stack = block_scaled_stack<W, S>;
};
}  // namespace detail

/// The view of a matrix whose storage is `W`: a scalar type or a block-scaled format.
template <class W, space S = space::host>
using storage_matrix = typename detail::storage_views<W, S>::matrix;
/// The view of equally sized matrices whose storage is `W`.
template <class W, space S = space::host>
using storage_stack = typename detail::storage_views<W, S>::stack;

/// The view of a weight of a model of scalar type `T` that is stored as `W`. Narrow weights are only read:
/// they may lie in a mapped file.
template <class T, class W, space S = space::host>
using weight_matrix = storage_matrix<std::conditional_t<std::is_same_v<T, W>, W, const W>, S>;
template <class T, class W, space S = space::host>
using weight_stack = storage_stack<std::conditional_t<std::is_same_v<T, W>, W, const W>, S>;

}  // namespace dsv4
