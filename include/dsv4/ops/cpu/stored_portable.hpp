// SPDX-License-Identifier: Apache-2.0
/// Kernels for narrow weights on any machine: elements are looked up one by one, into scratch.
#pragma once

#include <dsv4/ops/cpu/gemm_portable.hpp>
#include <dsv4/ops/cpu/row_streams.hpp>
#include <dsv4/ops/cpu/stored_kernels.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

/// The values of all codes of an element type of one byte or less.
template <class Element>
inline constexpr auto element_values = [] {
  std::array<float, 256> values{};
  for (unsigned code = 0; code < 256; ++code)
    values[code] = static_cast<float>(
        Element::from_bits(static_cast<std::uint8_t>(std::is_same_v<Element, e2m1> ? code & 15 : code)));
  return values;
}();

/// Column c of row r of a stored matrix as a float, exact.
template <class W>
float stored_value(const storage_matrix<const W>& w, std::int64_t r, std::int64_t c) {
  if constexpr (block_format<W>)
    return element_values<typename W::element>[W::get(w.row(r), c).bits] *
           static_cast<float>(w.row_scales(r)[c / W::block_columns]);
  else
    return static_cast<float>(widen(w(r, c)));
}

namespace portable {

/// R rows of a stored matrix as dot_tile reads them: `vectors` vectors of floats at a time.
template <class W, int R>
struct stored_rows {
  static constexpr int vectors = 1;
  static constexpr bool in_registers = false;
  const storage_matrix<const W>* matrix;
  std::int64_t row, column;

  /// `to` becomes rows [r, r + R), columns [c, c + n), c a multiple of a chunk, n at most one.
  static void open(const storage_matrix<const W>& m, std::int64_t r, std::int64_t c, std::int64_t,
                   stored_rows& to) {
    to.matrix = &m, to.row = r, to.column = c;
  }
  static void prefetch(int, std::int64_t, const stored_rows&) {}
  static void load(std::int64_t j, std::int64_t c, const stored_rows& w, lanes<float>::vec (&to)[1]) {
    load(j, c, lanes<float>::width, w, to);
  }
  /// The last n columns; zeros behind them.
  static void load(std::int64_t j, std::int64_t c, std::int64_t n, const stored_rows& w,
                   lanes<float>::vec (&to)[1]) {
    to[0] = lanes<float>::zero();
    for (std::int64_t i = 0; i < std::min<std::int64_t>(n, lanes<float>::width); ++i)
      to[0][i] = stored_value<W>(*w.matrix, w.row + j, w.column + c + i);
  }
};

#define DSV4_LANE static inline
#define DSV4_TARGET inline
#include <dsv4/ops/cpu/stored_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace portable
}  // namespace dsv4::detail
