// SPDX-License-Identifier: Apache-2.0
/// The announced costs of V4 at a context of a million tokens, against DeepSeek-V3.2, as static assertions.
///
/// They hold for 10^6 tokens (not 2^20: the 9.8 below would be 9.9) under this accounting: one token's
/// products in FP8 equivalents (see twice_fp8_equivalent), with V4's index scores in FP4 and V3.2's in FP8,
/// V3.2's attention in its absorbed form, multi-token prediction left out; cached entries with their scales,
/// V4's indexer keys in FP4.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/cost/cache.hpp>
#include <dsv4/cost/deepseek_v32.hpp>
#include <dsv4/cost/flops.hpp>

#include <cstdint>

namespace dsv4::cost {

inline constexpr std::int64_t announced_context = 1'000'000;

/// The costs of a model over V3.2's, and how many times smaller they are.
struct comparison {
  double flops, flops_times_less;
  double cache, cache_times_less;
};

constexpr comparison compare_with_v32(const model_config& c, std::int64_t context) {
  const std::int64_t flops = twice_fp8_equivalent(decode_flops(c, context).total(), true),
                     base = twice_fp8_equivalent(decode_flops(deepseek_v32, context), false),
                     cache = cache_bytes(c, cache_formats::released, context),
                     base_cache = cache_bytes(deepseek_v32, context);
  return {double(flops) / double(base), double(base) / double(flops), double(cache) / double(base_cache),
          double(base_cache) / double(cache)};
}

namespace detail {
constexpr int rounded(double value) { return static_cast<int>(value + 0.5); }

inline constexpr comparison pro = compare_with_v32(v4_pro, announced_context),
                            flash = compare_with_v32(v4_flash, announced_context);
static_assert(rounded(100 * pro.flops) == 27, "V4-Pro: 27% of V3.2's FLOPs of one token");
static_assert(rounded(10 * pro.flops_times_less) == 37, "V4-Pro: 3.7 times fewer FLOPs");
static_assert(rounded(100 * pro.cache) == 10, "V4-Pro: 10% of V3.2's KV cache");
static_assert(rounded(10 * pro.cache_times_less) == 95, "V4-Pro: a KV cache 9.5 times smaller");
static_assert(rounded(100 * flash.flops) == 10, "V4-Flash: 10% of V3.2's FLOPs of one token");
static_assert(rounded(10 * flash.flops_times_less) == 98, "V4-Flash: 9.8 times fewer FLOPs");
static_assert(rounded(100 * flash.cache) == 7, "V4-Flash: 7% of V3.2's KV cache");
static_assert(rounded(10 * flash.cache_times_less) == 137, "V4-Flash: a KV cache 13.7 times smaller");
}  // namespace detail

}  // namespace dsv4::cost
