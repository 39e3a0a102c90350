// SPDX-License-Identifier: Apache-2.0
/// MXFP4 as GGUF files hold it (ggml type 39), and as released checkpoints do: the same codes in another
/// order.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <cstdint>
#include <span>

namespace dsv4::io {

/// Bytes of a ggml block of 32: the E8M0 scale, then 16 bytes. Byte j holds element j in its low nibble and
/// element j + 16 in its high one, where a released checkpoint puts elements 2j and 2j + 1.
inline constexpr std::int64_t ggml_mxfp4_block_bytes = 17;

namespace detail {
template <class M>
void expect_ggml_shape(const M& m, std::int64_t bytes) {
  expect(m.extent[1] % 32 == 0, "ggml_mxfp4", "columns", "a multiple of 32", m.extent[1]);
  expect_extent("ggml_mxfp4", "bytes of the blocks", bytes,
                m.extent[0] * m.extent[1] / 32 * ggml_mxfp4_block_bytes);
}
}  // namespace detail

/// Row-major ggml blocks of `m`. Throws contract_error when the columns are not whole blocks, or `blocks` is
/// of another size.
inline void to_ggml_mxfp4(const block_scaled_matrix<const mxfp4>& m, std::span<std::uint8_t> blocks) {
  detail::expect_ggml_shape(m, static_cast<std::int64_t>(blocks.size()));
  std::uint8_t* to = blocks.data();
  for (std::int64_t r = 0; r < m.extent[0]; ++r)
    for (std::int64_t c = 0; c < m.extent[1]; c += 32) {
      *to++ = m.row_scales(r)[c / 32].bits;
      for (std::int64_t j = 0; j < 16; ++j)
        *to++ = static_cast<std::uint8_t>(mxfp4::get(m.row(r), c + j).bits |
                                          mxfp4::get(m.row(r), c + j + 16).bits << 4);
    }
}

/// The other way. Throws as to_ggml_mxfp4.
inline void from_ggml_mxfp4(std::span<const std::uint8_t> blocks, const block_scaled_matrix<mxfp4>& m) {
  detail::expect_ggml_shape(m, static_cast<std::int64_t>(blocks.size()));
  const std::uint8_t* from = blocks.data();
  for (std::int64_t r = 0; r < m.extent[0]; ++r)
    for (std::int64_t c = 0; c < m.extent[1]; c += 32) {
      m.row_scales(r)[c / 32] = e8m0::from_bits(*from++);
      for (std::int64_t j = 0; j < 16; ++j, ++from) {
        mxfp4::set(m.row(r), c + j, e2m1::from_bits(*from & 0xF));
        mxfp4::set(m.row(r), c + j + 16, e2m1::from_bits(static_cast<std::uint8_t>(*from >> 4)));
      }
    }
}

}  // namespace dsv4::io
