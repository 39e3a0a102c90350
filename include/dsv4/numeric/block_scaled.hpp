// SPDX-License-Identifier: Apache-2.0
/// Block-scaled formats: small elements that share a power-of-two scale per block. Told here once, for
/// packing, unpacking and kernels.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/e8m0.hpp>
#include <dsv4/numeric/minifloat.hpp>
#include <dsv4/numeric/widen.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>

namespace dsv4 {

/// How the scale of a block follows from its largest magnitude `amax`.
enum class scale_rule : std::uint8_t {
  ceil,   ///< 2^ceil(log2(amax / largest element)): nothing saturates (the released checkpoints)
  floor,  ///< 2^(floor(log2 amax) - exponent of the largest element): the top may saturate (OCP MX v1.0, 6.3)
};

/// A matrix of `Element`, cut into blocks of `Rows` x `Columns` (those at the ends may be smaller), each with
/// one E8M0 scale; value = element * scale. Elements are row-major; of two-per-byte elements the even column
/// is in the low nibble, and a row starts on a byte. Scales are row-major, one per block.
template <class Element, int Rows, int Columns, scale_rule Rule = scale_rule::ceil>
struct block_scaled {
  using element = Element;
  static constexpr int block_rows = Rows, block_columns = Columns;
  static constexpr scale_rule rule = Rule;
  static constexpr bool packed = std::same_as<Element, e2m1>;
  /// What a scale is computed from at least: activations keep the kernels' 1e-4, all else 2^-126 times the
  /// largest element, so that no block of zeros divides by zero (docs/numeric-types.md).
  static constexpr double smallest_amax =
      Rows == 1 && !packed ? 1e-4 : static_cast<double>(Element::max()) * 0x1p-126;

  DSV4_HOST_DEVICE static constexpr std::int64_t scale_rows(std::int64_t rows) {
    return (rows + Rows - 1) / Rows;
  }
  DSV4_HOST_DEVICE static constexpr std::int64_t scale_columns(std::int64_t columns) {
    return (columns + Columns - 1) / Columns;
  }
  /// Bytes of one row of elements.
  DSV4_HOST_DEVICE static constexpr std::int64_t row_bytes(std::int64_t columns) {
    return packed ? (columns + 1) / 2 : columns;
  }
  /// Bytes of elements and scales.
  DSV4_HOST_DEVICE static constexpr std::int64_t bytes(std::int64_t rows, std::int64_t columns) {
    return rows * row_bytes(columns) + scale_rows(rows) * scale_columns(columns);
  }

  /// The element at `column` of a row of elements.
  DSV4_HOST_DEVICE static constexpr Element get(const std::uint8_t* row, std::int64_t column) {
    if constexpr (packed)
      return Element::from_bits(static_cast<std::uint8_t>(row[column / 2] >> (column % 2 * 4) & 0xF));
    else
      return Element::from_bits(row[column]);
  }
  DSV4_HOST_DEVICE static constexpr void set(std::uint8_t* row, std::int64_t column, Element value) {
    if constexpr (packed) {
      const int shift = static_cast<int>(column % 2 * 4);
      row[column / 2] = static_cast<std::uint8_t>((row[column / 2] & ~(0xF << shift)) | value.bits << shift);
    } else {
      row[column] = value.bits;
    }
  }

  /// The scale of a block with largest magnitude `amax`, exactly by the rule; exponents outside E8M0
  /// saturate, NaN and infinity give the NaN scale, which makes the whole block NaN.
  static e8m0 scale(double amax) {
    if (!(amax < HUGE_VAL)) return e8m0::from_bits(0xFF);
    amax = amax > smallest_amax ? amax : smallest_amax;
    const double largest = static_cast<double>(Element::max());
    int e;
    if (rule == scale_rule::ceil) {
      // amax / largest loses nothing near a power of two for float input: largest has three bits.
      const double fraction = std::frexp(amax / largest, &e);
      if (fraction == 0.5) --e;
    } else {
      e = std::ilogb(amax) - std::ilogb(largest);
    }
    return e8m0::from_bits(static_cast<std::uint8_t>(e < -127 ? 0 : e > 127 ? 254 : e + 127));
  }
  /// The element of `value` under `scale`: to the nearest, ties to even, saturating.
  template <class T>
  static Element quantise(T value, e8m0 scale) {
    return Element(round_to_odd(value / static_cast<T>(static_cast<float>(scale))));
  }
};

/// FP4 weights and index keys (OCP MX v1.0 element layout, the released scale rule).
using mxfp4 = block_scaled<e2m1, 1, 32>;
/// FP4 with OCP's own scale rule.
using mxfp4_ocp = block_scaled<e2m1, 1, 32, scale_rule::floor>;
/// FP8 weights.
using fp8_weight = block_scaled<e4m3, 128, 128>;
/// FP8 inputs of quantised matrix products.
using fp8_activation = block_scaled<e4m3, 1, 128>;
/// FP8 entries of the KV cache.
using fp8_kv = block_scaled<e4m3, 1, 64>;

/// A block_scaled format, const or not.
template <class F>
concept block_format = requires {
  typename F::element;
  { F::block_columns } -> std::convertible_to<int>;
  { F::scale_columns(std::int64_t{}) } -> std::convertible_to<std::int64_t>;
};

}  // namespace dsv4
