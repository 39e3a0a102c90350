// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/error.hpp>
#include <dsv4/io/ggml_mxfp4.hpp>

#include <cstdint>
#include <vector>

using namespace dsv4;

TEST_CASE("FP4 nibble order: a GGUF block is a permutation of ours, both ways") {
  // Elements 0 to 31 with the codes 0 to 15 twice, so that every wrong order shows.
  std::vector<std::uint8_t> codes(16), blocks(17);
  std::vector<e8m0> scales{e8m0::from_bits(120)};
  const block_scaled_matrix<mxfp4> m(codes.data(), scales.data(), 1, 32);
  for (int i = 0; i < 32; ++i) mxfp4::set(m.row(0), i, e2m1::from_bits(static_cast<std::uint8_t>(i % 16)));
  CHECK(codes[1] == 0x32);  // elements 2 and 3
  io::to_ggml_mxfp4(m, blocks);
  CHECK(blocks[0] == 120);
  for (std::uint8_t j = 0; j < 16; ++j) CHECK(blocks[std::size_t{1} + j] == (j | j << 4));  // j and j + 16

  blocks = {119};
  for (int j = 0; j < 16; ++j) blocks.push_back(static_cast<std::uint8_t>((15 - j) << 4 | j));
  io::from_ggml_mxfp4(blocks, m);
  CHECK(scales[0].bits == 119);
  for (int i = 0; i < 32; ++i) CHECK(mxfp4::get(m.row(0), i).bits == (i < 16 ? i : 31 - i));
}

TEST_CASE("GGUF repack of random blocks and back is the identity, and values stay") {
  const std::int64_t rows = 5, columns = 96;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * columns / 2)), again(codes.size());
  std::vector<e8m0> scales(static_cast<std::size_t>(rows * columns / 32)), scales_again(scales.size());
  std::uint32_t state = 5;
  for (auto& c : codes) c = static_cast<std::uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  for (auto& s : scales)
    s = e8m0::from_bits(static_cast<std::uint8_t>((state = state * 1664525u + 1013904223u) >> 24));
  std::vector<std::uint8_t> blocks(
      static_cast<std::size_t>(rows * columns / 32 * io::ggml_mxfp4_block_bytes));
  io::to_ggml_mxfp4(block_scaled_matrix<mxfp4>(codes.data(), scales.data(), rows, columns), blocks);
  io::from_ggml_mxfp4(blocks, {again.data(), scales_again.data(), rows, columns});
  CHECK(again == codes);
  CHECK(scales_again == scales);
  CHECK_THROWS_AS(io::from_ggml_mxfp4({blocks.data(), 17}, {again.data(), scales.data(), 1, 31}),
                  contract_error);
  CHECK_THROWS_AS(io::from_ggml_mxfp4({blocks.data(), 16}, {again.data(), scales.data(), 1, 32}),
                  contract_error);
}
