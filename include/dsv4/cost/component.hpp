// SPDX-License-Identifier: Apache-2.0
/// The parts of a model that costs are told for, and one number for each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dsv4::cost {

enum class component : std::uint8_t {
  embedding,
  attention,         ///< projections, sinks and norms; core attention
  compressor,        ///< of keys and values
  indexer,           ///< queries, head weights, its own compressor; scores
  hyper_connection,  ///< mHC mixing, and the collapse before the head
  router,
  routed_experts,
  shared_expert,
  head,
  mtp,  ///< the multi-token-prediction block, all of it
};
inline constexpr std::size_t components = 10;

constexpr std::string_view component_name(component c) {
  constexpr std::string_view names[components] = {
      "embedding", "attention",      "compressor",    "indexer", "hyper-connections",
      "router",    "routed experts", "shared expert", "head",    "MTP block"};
  return names[static_cast<std::size_t>(c)];
}

/// A `T` for each component; T() is none.
template <class T>
struct per_component {
  std::array<T, components> values{};

  constexpr T& operator[](component c) { return values[static_cast<std::size_t>(c)]; }
  constexpr const T& operator[](component c) const { return values[static_cast<std::size_t>(c)]; }
  constexpr T total() const {
    T sum{};
    for (const T& v : values) sum = sum + v;
    return sum;
  }
  friend constexpr per_component operator+(per_component a, const per_component& b) {
    for (std::size_t i = 0; i < components; ++i) a.values[i] = a.values[i] + b.values[i];
    return a;
  }
};

}  // namespace dsv4::cost
