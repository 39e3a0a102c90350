// SPDX-License-Identifier: Apache-2.0
/// Element types of checkpoint files, and the bytes that a tensor of them takes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace dsv4::io {

/// The element types of safetensors that checkpoints of this model family use.
enum class dtype { f64, f32, f16, bf16, f8_e4m3, f8_e5m2, f8_e8m0, f4, i64, i32, i16, i8, u8, boolean };

namespace detail {

struct dtype_row {
  dtype type;
  std::string_view name;
  int bits;
};

inline constexpr std::array<dtype_row, 14> dtype_rows{{
    {dtype::f64, "F64", 64},
    {dtype::f32, "F32", 32},
    {dtype::f16, "F16", 16},
    {dtype::bf16, "BF16", 16},
    {dtype::f8_e4m3, "F8_E4M3", 8},
    {dtype::f8_e5m2, "F8_E5M2", 8},
    {dtype::f8_e8m0, "F8_E8M0", 8},
    {dtype::f4, "F4", 4},
    {dtype::i64, "I64", 64},
    {dtype::i32, "I32", 32},
    {dtype::i16, "I16", 16},
    {dtype::i8, "I8", 8},
    {dtype::u8, "U8", 8},
    {dtype::boolean, "BOOL", 8},
}};

}  // namespace detail

/// The name of `type` in a file header, such as "BF16".
[[nodiscard]] constexpr std::string_view dtype_name(dtype type) noexcept {
  return detail::dtype_rows[static_cast<std::size_t>(type)].name;
}

/// Bits of one element; `f4` packs two elements to a byte.
[[nodiscard]] constexpr int dtype_bits(dtype type) noexcept {
  return detail::dtype_rows[static_cast<std::size_t>(type)].bits;
}

/// The dtype called `name` in file headers, or nothing.
[[nodiscard]] constexpr std::optional<dtype> dtype_from_name(std::string_view name) noexcept {
  for (const auto& row : detail::dtype_rows) {
    if (row.name == name) return row.type;
  }
  return std::nullopt;
}

/// The bytes that a tensor of `shape` (elements per axis, row-major; empty for a scalar) takes. Nothing
/// when an axis is negative, when the product of the non-zero axes times the bits exceeds 64 bits (even
/// if another axis is zero: strides of such a shape would overflow), or when the bits do not fill bytes.
[[nodiscard]] constexpr std::optional<std::uint64_t> tensor_bytes(
    dtype type, std::span<const std::int64_t> shape) noexcept {
  auto bits = static_cast<std::uint64_t>(dtype_bits(type));
  bool empty = false;
  for (const std::int64_t axis : shape) {
    if (axis < 0) return std::nullopt;
    if (axis == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(axis), &bits)) {
      return std::nullopt;
    }
  }
  if (empty) return 0;
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

/// "BF16 [7168, 2048]"; for messages.
[[nodiscard]] inline std::string describe(dtype type, std::span<const std::int64_t> shape) {
  std::string out = std::string(dtype_name(type)) + " [";
  for (std::size_t i = 0; i < shape.size(); ++i)
    out.append(i == 0 ? "" : ", ").append(std::to_string(shape[i]));
  return out + "]";
}

}  // namespace dsv4::io
