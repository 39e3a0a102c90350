// SPDX-License-Identifier: Apache-2.0
/// The list of attention kinds, layer by layer, as a compile-time value.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace dsv4 {

/// What a layer attends to beside its sliding window.
enum class attention_kind : std::uint8_t {
  sliding,  ///< nothing else (compress ratio 0)
  csa,      ///< compressed sparse attention: overlapping groups, top-k selected by the indexer
  hca,      ///< heavily compressed attention: disjoint groups, all of them
};

/// Up to 128 layers, two bits each: structural, so that it can be part of a template argument.
struct layer_schedule {
  static constexpr int capacity = 128;
  int count = 0;
  std::uint64_t bits0 = 0, bits1 = 0, bits2 = 0, bits3 = 0;

  constexpr attention_kind operator[](int layer) const {
    const std::uint64_t word = layer < 32 ? bits0 : layer < 64 ? bits1 : layer < 96 ? bits2 : bits3;
    return static_cast<attention_kind>(word >> (2 * (layer % 32)) & 3);
  }
  /// This schedule and one more layer at its end.
  constexpr layer_schedule then(attention_kind kind) const {
    layer_schedule next = *this;
    std::uint64_t& word = count < 32   ? next.bits0
                          : count < 64 ? next.bits1
                          : count < 96 ? next.bits2
                                       : next.bits3;
    word |= static_cast<std::uint64_t>(kind) << (2 * (count % 32));
    ++next.count;
    return next;
  }
  /// This schedule, then `times` repetitions of `kinds`.
  constexpr layer_schedule then(std::initializer_list<attention_kind> kinds, int times = 1) const {
    layer_schedule next = *this;
    for (int i = 0; i < times; ++i)
      for (attention_kind kind : kinds) next = next.then(kind);
    return next;
  }
  /// How many layers are of `kind`.
  constexpr int number_of(attention_kind kind) const {
    int n = 0;
    for (int i = 0; i < count; ++i) n += (*this)[i] == kind;
    return n;
  }
  friend constexpr bool operator==(const layer_schedule&, const layer_schedule&) = default;
};

/// layer_schedule from a list: schedule({attention_kind::sliding, attention_kind::csa}).
constexpr layer_schedule schedule(std::initializer_list<attention_kind> kinds) {
  return layer_schedule{}.then(kinds);
}

}  // namespace dsv4
