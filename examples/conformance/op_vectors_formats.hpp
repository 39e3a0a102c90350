// SPDX-License-Identifier: Apache-2.0
/// Vectors of number formats: bytes to values and back.
#pragma once

#include "workbench.hpp"
#include <dsv4/io/ggml_mxfp4.hpp>
#include <dsv4/numeric/nvfp4.hpp>
#include <dsv4/ops/recast.hpp>

namespace conformance {

/// The bytes of a block-scaled matrix, as the recorder keeps them.
template <class B, class F>
void record_codes(B& b, node n, const char* role, const dsv4::block_scaled_matrix<F>& m) {
  const char* axes = "row byte";
  tensor codes{dtype::u8, {m.extent[0], F::row_bytes(m.extent[1])}, {}};
  for (std::int64_t i = 0; i < codes.shape[0] * codes.shape[1]; ++i) codes.values.push_back(m.codes[i]);
  tensor scales{dtype::u8, {F::scale_rows(m.extent[0]), F::scale_columns(m.extent[1])}, {}};
  for (std::int64_t i = 0; i < scales.shape[0] * scales.shape[1]; ++i)
    scales.values.push_back(m.scales[i].bits);
  b.to().computed(n, role, std::move(codes), axes, comparison::exact);
  b.record(std::move(n), std::string(role) + "_scale", std::move(scales), "row block", comparison::exact);
}

template <class F>
void for_each_decoding_vector(const F& f) {
  f("mxfp4.bytes", "all 256 bytes: the low nibble is the even element", {"50", "53"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto m = b.template codes<dsv4::mxfp4>(
        "code", [](std::int64_t i) { return i; }, [](std::int64_t i) { return 120 + i; }, 16, 32);
    b.next("decoded");
    dsv4::dequantise<dsv4::mxfp4, T>::forward(b.policy, {m}, {b.out(16, 32)});
  });
  f("mxfp4.scales", "the E8M0 codes 0 to 254, 2^-127 to 2^127, on elements 1 and 0.5", {"51"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto m = b.template codes<dsv4::mxfp4>(
        "code", [](std::int64_t) { return 0x12; }, [](std::int64_t i) { return i; }, 255, 2);
    b.next("decoded");
    dsv4::dequantise<dsv4::mxfp4, T>::forward(b.policy, {m}, {b.out(255, 2)});
  });
  f("mxfp4.ggml", "the same blocks in GGUF's order, where a byte holds elements j and j + 16", {"50"},
    [](auto& b) {
      tensor blocks{dtype::u8, {2, 17}, {}};
      std::vector<std::uint8_t> bytes;
      for (int row = 0; row < 2; ++row)
        for (int i = 0; i < 17; ++i)
          bytes.push_back(static_cast<std::uint8_t>(i == 0 ? 125 + row : 17 * i + 90 * row));
      for (std::uint8_t byte : bytes) blocks.values.push_back(byte);
      b.to().tensors.emplace("blocks", std::move(blocks));
      const auto m = b.template blocks<dsv4::mxfp4>(2, 32);
      dsv4::io::from_ggml_mxfp4(bytes, m);
      b.next("repacked");
      record_codes(b, {"from_ggml_mxfp4", {{"blocks", "blocks"}}, {}, json::object()}, "code", m);
    });
  f("e4m3.bytes", "all 256 bytes of the finite dialect (e4m3fn): bias 7, 0x80 is -0, 0x7F and 0xFF are NaN",
    {"51b"}, [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto m = b.template codes<dsv4::fp8_activation>(
          "code", [](std::int64_t i) { return i; }, [](std::int64_t) { return 127; }, 1, 256);
      b.next("decoded");
      dsv4::dequantise<dsv4::fp8_activation, T>::forward(b.policy, {m}, {b.out(1, 256)});
    });
  f("nvfp4.block", "not V4's: groups of 16, E4M3 scales, a float for the tensor", {"53"}, [](auto& b) {
    tensor codes{dtype::u8, {2, 8}, {}}, scales{dtype::u8, {2}, {}}, x{dtype::f32, {2, 16}, {}};
    for (int i = 0; i < 2; ++i) {
      dsv4::nvfp4_block block;
      block.scale = dsv4::e4m3::from_bits(static_cast<std::uint8_t>(0x35 + 10 * i));
      scales.values.push_back(block.scale.bits);
      for (int j = 0; j < 8; ++j) {
        const int byte = (37 * j + 101 * i + 9) % 256;
        codes.values.push_back(byte);
        block.pairs[j] = dsv4::e2m1x2::from_bits(static_cast<std::uint8_t>(byte));
      }
      float values[16];
      block.dequantise(0.75f, values);
      for (float v : values) x.values.push_back(double(v));
    }
    b.to().tensors.emplace("code", std::move(codes)), b.to().tensors.emplace("code_scale", std::move(scales));
    b.next("decoded");
    b.record({"dequantise", {{"code", "code"}}, {}, {{"format", "nvfp4"}, {"tensor_scale", 0.75}}}, "x",
             std::move(x), "block channel", comparison::relative);
  });
}

template <class F>
void for_each_rounding_vector(const F& f) {
  // Magnitudes from block to block; the second block of row 1 is zero.
  const auto fill = [](auto& b, double size, std::int64_t rows, std::int64_t columns, std::int64_t block) {
    const std::uint64_t key = dsv4::detail::fnv1a64("values to round");
    return b.given(
        "x",
        [=](std::int64_t i) {
          const std::int64_t row = i / columns, group = i % columns / block;
          if (row == 1 && group == 1) return 0.0;
          const double r = double(dsv4::detail::splitmix64(key + std::uint64_t(i)) >> 44) * 0x1p-19 - 1;
          return double(float(std::ldexp(size * r, int((row + 2 * group) % 5))));
        },
        rows, columns);
  };
  f("mxfp4.rounding", "groups of 32, scale 2^ceil(log2(amax / 6)), ties to even, a block of zeros",
    {"22", "35"}, [=](auto& b) {
      using T = scalar_of<decltype(b)>;
      b.to().f32_only = true;
      const auto x = fill(b, 3, 3, 70, 32);
      const auto m = b.template blocks<dsv4::mxfp4>(3, 70);
      b.next("rounded");
      dsv4::quantise<dsv4::mxfp4, T>::forward(b.policy, {x}, {m});
      b.next("decoded");
      dsv4::dequantise<dsv4::mxfp4, T>::forward(b.policy, {m}, {b.out(3, 70)});
    });
  f("e4m3.rounding", "groups of 128, scale 2^ceil(log2(amax / 448)): stored and used are the same scale",
    {"35"}, [=](auto& b) {
      using T = scalar_of<decltype(b)>;
      b.to().f32_only = true;
      const auto x = fill(b, 3, 2, 150, 128);
      const auto m = b.template blocks<dsv4::fp8_activation>(2, 150);
      b.next("rounded");
      dsv4::quantise<dsv4::fp8_activation, T>::forward(b.policy, {x}, {m});
      b.next("decoded");
      dsv4::dequantise<dsv4::fp8_activation, T>::forward(b.policy, {m}, {b.out(2, 150)});
    });
  f("e4m3.tiles", "weights: one scale for 128 x 128, two tiles across", {"35", "56"}, [=](auto& b) {
    using T = scalar_of<decltype(b)>;
    b.to().f32_only = true;
    const auto x = fill(b, 3, 3, 140, 64);
    const auto m = b.template blocks<dsv4::fp8_weight>(3, 140);
    b.next("rounded");
    dsv4::quantise<dsv4::fp8_weight, T>::forward(b.policy, {x}, {m});
  });
  f("e4m3.kv", "key-values: the 70 channels that are not rotated, in groups of 64; the last 10 stay", {"35"},
    [=](auto& b) {
      using T = scalar_of<decltype(b)>;
      b.to().f32_only = true;
      const auto x = fill(b, 3, 3, 80, 64);
      b.next("stored");
      dsv4::round_trip<dsv4::fp8_kv, T>::forward(b.policy, {}, {x.columns(0, 70)});
    });
  f("mxfp4.recast", "FP4 to FP8 without rounding: scales within 2^14 of the largest, and a tile beyond it",
    {"52"}, [](auto& b) {
      for (const bool spread : {false, true}) {
        const std::string name = spread ? "spread" : "even";
        const auto m = b.template codes<dsv4::mxfp4>(
            name, [](std::int64_t i) { return (i * 53 + 17) % 256; },
            [=](std::int64_t i) { return spread && i == 3 ? 100 : 120 + i; }, 2, 64);
        const auto to = b.template blocks<dsv4::fp8_weight>(2, 64);
        const auto violations = b.template array<std::int64_t>(1);
        dsv4::recast<>::forward(b.policy.inner, {m}, {to, violations});
        b.next(name + "_recast");
        node n{"recast", {{"code", name}}, {}, {{"from", "mxfp4"}, {"to", "e4m3_128x128"}}};
        tensor count{dtype::i32, {1}, {double(violations(0))}};
        if (spread) {
          b.record(std::move(n), "violations", std::move(count), "tile row", comparison::exact);
        } else {
          b.to().computed(n, "violations", std::move(count), "tile row", comparison::exact);
          record_codes(b, std::move(n), "code", to);
        }
      }
    });
}

template <class F>
void for_each_format_vector(const F& f) {
  for_each_decoding_vector(f);
  for_each_rounding_vector(f);
}

}  // namespace conformance
