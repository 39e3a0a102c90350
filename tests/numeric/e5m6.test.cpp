// SPDX-License-Identifier: Apache-2.0
/// The packing of e5m6; its rounding is tested with the other formats in minifloat.test.cpp.
#include "support/catch.hpp"
#include <dsv4/numeric/e5m6.hpp>

#include <bit>
#include <random>
#include <type_traits>

using namespace dsv4;

TEST_CASE("e5m6: eight values are three words, as the released kernel packs them") {
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    e5m6 v[8];
    for (e5m6& x : v) x = e5m6::from_bits(static_cast<std::uint16_t>(random() & 0xfff));
    const auto b = [&](int i) { return std::uint32_t{v[i].bits}; };
    e5m6x8 packed = e5m6x8::pack(v);
    CHECK(packed.words[0] == (b(0) << 20 | b(1) << 8 | b(2) >> 4));
    CHECK(packed.words[1] == (b(2) << 28 | b(3) << 16 | b(4) << 4 | b(5) >> 8));
    CHECK(packed.words[2] == (b(5) << 24 | b(6) << 12 | b(7)));
    for (int i = 0; i < 8; ++i) CHECK(packed.get(i) == v[i]);
    const int changed = static_cast<int>(random() % 8);
    v[changed] = e5m6::from_bits(static_cast<std::uint16_t>(~v[changed].bits));
    packed.set(changed, v[changed]);
    for (int i = 0; i < 8; ++i) CHECK(packed.get(i) == v[i]);
  }
  static_assert(std::is_trivially_copyable_v<e5m6x8> && e5m6x8{{0, 0, 0xABC}}.get(7).bits == 0xABC);
}

namespace {
/// The released kernel's rounding of a positive float in the range of half precision: truncation to half,
/// then one up by the float's low 17 bits, wherever the half's last bits lie.
unsigned released_rounding(float x) {
  const auto word = std::bit_cast<std::uint32_t>(x);
  const int exponent = static_cast<int>(word >> 23) - 127;
  const std::uint32_t significand = (word & 0x7fffff) | 0x800000;
  const std::uint32_t half = exponent >= -14
                                 ? static_cast<std::uint32_t>(exponent + 14) * 1024 + (significand >> 13)
                                 : significand >> (13 - 14 - exponent);
  const std::uint32_t code = half >> 4;
  return code + ((code & 1) + (word & 0x1ffff) > 0x10000 ? 1 : 0);
}
}  // namespace

TEST_CASE("e5m6: the released kernel's rounding is ours for normals, not for subnormals") {
  for (std::uint32_t word = std::bit_cast<std::uint32_t>(0x1p-14f);
       word < std::bit_cast<std::uint32_t>(65024.0f); word += 1009)
    if (released_rounding(std::bit_cast<float>(word)) != e5m6(std::bit_cast<float>(word)).bits) {
      FAIL(std::bit_cast<float>(word));
    }
  const float x = 0x1.8p-20f;  // the tie between 2^-20 and 2^-19
  CHECK(e5m6(x).bits == 2);
  CHECK(released_rounding(x) == 1);
}
