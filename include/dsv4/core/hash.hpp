// SPDX-License-Identifier: Apache-2.0
/// Hashes that are the same in every language and on every machine.
#pragma once

#include <cstdint>
#include <string_view>

namespace dsv4::detail {

/// The 64-bit finaliser of splitmix64: a hash without state.
constexpr std::uint64_t splitmix64(std::uint64_t x) {
  std::uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr std::uint64_t fnv1a64(std::string_view text) {
  std::uint64_t h = 0xCBF29CE484222325u;
  for (char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return h;
}

}  // namespace dsv4::detail
