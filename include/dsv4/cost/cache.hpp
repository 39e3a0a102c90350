// SPDX-License-Identifier: Apache-2.0
/// What one sequence keeps for attention: a constant, and so many bytes more for every token.
#pragma once

#include <dsv4/config/model_config.hpp>

#include <cstdint>

namespace dsv4::cost {

/// How cached entries are stored. Channels that are not rotated may share a scale byte among `scale_group`;
/// an entry's scales are rounded up to 8 bytes.
struct cache_format {
  int value_bits;       ///< of a channel that is not rotated
  int rope_bits;        ///< of a rotated channel
  int scale_group = 0;  ///< channels to a scale byte; 0: no scales
  int index_bits;       ///< of a channel of an indexer key
  int index_group = 0;  ///< channels to a scale byte of those

  constexpr std::int64_t entry_bytes(const attention_config& a) const {
    const std::int64_t plain = a.head_dim - a.qk_rope_head_dim;
    const std::int64_t scales = scale_group ? (plain + scale_group - 1) / scale_group : 0;
    return (plain * value_bits + std::int64_t{a.qk_rope_head_dim} * rope_bits) / 8 + (scales + 7) / 8 * 8;
  }
  constexpr std::int64_t index_bytes(const attention_config& a) const {
    const std::int64_t n = a.index_head_dim;
    return n * index_bits / 8 + (index_group ? (n + index_group - 1) / index_group : 0);
  }
};

namespace cache_formats {
/// FP8 with a scale per 64 channels beside rotated channels in BF16, MXFP4 indexer keys: 584 and 68 bytes at
/// the released sizes. This is what the announced sizes count.
inline constexpr cache_format released{
    .value_bits = 8, .rope_bits = 16, .scale_group = 64, .index_bits = 4, .index_group = 32};
/// The same with FP8 indexer keys and one 32-bit scale for each: 132 bytes.
inline constexpr cache_format fp8_index{
    .value_bits = 8, .rope_bits = 16, .scale_group = 64, .index_bits = 8, .index_group = 32};
inline constexpr cache_format bf16{.value_bits = 16, .rope_bits = 16, .index_bits = 16};
inline constexpr cache_format float32{.value_bits = 32, .rope_bits = 32, .index_bits = 32};
}  // namespace cache_formats

/// Bytes of one sequence of `tokens` tokens, one layer: its window and its entries. The unpooled tails of at
/// most two groups are not counted.
constexpr std::int64_t cache_bytes(const attention_config& a, attention_kind kind, const cache_format& f,
                                   std::int64_t tokens) {
  std::int64_t bytes = (tokens < a.sliding_window ? tokens : a.sliding_window) * f.entry_bytes(a);
  if (kind != attention_kind::sliding) bytes += tokens / a.compress_ratio(kind) * f.entry_bytes(a);
  if (kind == attention_kind::csa) bytes += tokens / a.csa_compress_ratio * f.index_bytes(a);
  return bytes;
}

/// All layers, without multi-token prediction.
constexpr std::int64_t cache_bytes(const model_config& c, const cache_format& f, std::int64_t tokens) {
  std::int64_t bytes = 0;
  for (const attention_kind kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca})
    bytes += c.layers.number_of(kind) * cache_bytes(c.attention, kind, f, tokens);
  return bytes;
}

/// Beyond the window a cache takes `constant` bytes and `per_token` for each token.
struct cache_line {
  std::int64_t constant;
  double per_token;
};

constexpr cache_line cache_cost(const attention_config& a, attention_kind kind, const cache_format& f) {
  const double entry = double(f.entry_bytes(a)), index = double(f.index_bytes(a));
  return {a.sliding_window * f.entry_bytes(a), kind == attention_kind::csa
                                                   ? (entry + index) / a.csa_compress_ratio
                                               : kind == attention_kind::hca ? entry / a.hca_compress_ratio
                                                                             : 0.0};
}

constexpr cache_line cache_cost(const model_config& c, const cache_format& f) {
  cache_line sum{0, 0};
  for (const attention_kind kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca}) {
    const cache_line one = cache_cost(c.attention, kind, f);
    sum.constant += c.layers.number_of(kind) * one.constant;
    sum.per_token += c.layers.number_of(kind) * one.per_token;
  }
  return sum;
}

}  // namespace dsv4::cost
