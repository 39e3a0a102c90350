// SPDX-License-Identifier: Apache-2.0
/// The cost model as tables of text.
#pragma once

#include <dsv4/cost/announced.hpp>
#include <dsv4/cost/training_memory.hpp>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace cost_program {

using namespace dsv4;

inline constexpr attention_kind kinds[] = {attention_kind::sliding, attention_kind::csa, attention_kind::hca};
inline constexpr const char* kind_names[] = {"sliding window", "CSA", "HCA"};

/// 1234567 as "1.23 M", in steps of a thousand.
inline std::string scaled(double v) {
  const char* prefix = " kMGTPE";
  while (v >= 999.5 && prefix[1]) v /= 1000, ++prefix;
  char text[32];
  std::snprintf(text, sizeof text,
                v == 0      ? "0"
                : v < 9.995 ? "%.2f%s%c"
                : v < 99.95 ? "%.1f%s%c"
                            : "%.0f%s%c",
                v, *prefix == ' ' ? "" : " ", *prefix == ' ' ? '\0' : *prefix);
  return text;
}
inline std::string scaled(std::int64_t v) { return scaled(double(v)); }

/// Left-aligned names, right-aligned numbers.
inline void row(const std::string& name, const std::vector<std::string>& cells) {
  std::printf("  %-24s", name.c_str());
  for (const auto& cell : cells) std::printf(" %12s", cell.c_str());
  std::printf("\n");
}

inline void print_weights(const model_config& c) {
  const auto count = cost::parameters(c);
  const auto plain = cost::weight_bytes(c, numerics::float32),
             released = cost::weight_bytes(c, numerics::v4_released);
  std::printf("weights\n");
  row("", {"parameters", "released, B", "float, B"});
  for (std::size_t i = 0; i < cost::components; ++i)
    row(std::string(cost::component_name(static_cast<cost::component>(i))),
        {scaled(count.values[i]), scaled(released.values[i]), scaled(plain.values[i])});
  row("all", {scaled(count.total()), scaled(released.total()), scaled(plain.total())});
  row("active for a token", {scaled(count_parameters(c).active), "", ""});
}

inline void print_flops(const model_config& c, std::int64_t context) {
  std::printf("\nFLOPs of one token at a context of %lld\n", static_cast<long long>(context));
  row("", {"FP4 x FP8", "FP8", "BF16", "index scores", "attention", "all"});
  const auto line = [](const std::string& name, const cost::flop_count& f) {
    row(name,
        {scaled(f.fp4_fp8), scaled(f.fp8), scaled(f.bf16), scaled(f.index), scaled(f.core), scaled(f.raw())});
  };
  const auto flops = cost::decode_flops(c, context);
  for (std::size_t i = 0; i < cost::components; ++i)
    if (flops.values[i].raw() > 0)
      line(std::string(cost::component_name(static_cast<cost::component>(i))), flops.values[i]);
  line("all", flops.total());
  for (std::size_t k = 0; k < 3; ++k)
    if (c.layers.number_of(kinds[k]) > 0)
      line(std::string("one ") + kind_names[k] + " layer", cost::decode_flops(c, kinds[k], context).total());
  line("DeepSeek-V3.2", cost::decode_flops(cost::deepseek_v32, context));
  const double own = double(cost::twice_fp8_equivalent(flops.total(), true)) / 2,
               base = double(cost::twice_fp8_equivalent(cost::decode_flops(cost::deepseek_v32, context),
                                                        false)) /
                      2;
  std::printf(
      "  in FP8 equivalents (BF16 twice, FP4 index scores half): %s, %.2f%% of V3.2's %s, %.2f times fewer\n",
      scaled(own).c_str(), 100 * own / base, scaled(base).c_str(), base / own);
}

inline void print_cache(const model_config& c, std::int64_t context) {
  std::printf("\nKV cache of one sequence\n");
  row("", {"constant, B", "B per token", "at context, B"});
  const auto line = [&](const std::string& name, const cost::cache_line& l, std::int64_t bytes) {
    char slope[32];
    std::snprintf(slope, sizeof slope, "%.1f", l.per_token);
    row(name, {scaled(l.constant), slope, scaled(bytes)});
  };
  const auto& f = cost::cache_formats::released;
  for (std::size_t k = 0; k < 3; ++k)
    if (c.layers.number_of(kinds[k]) > 0)
      line(std::string("one ") + kind_names[k] + " layer", cost::cache_cost(c.attention, kinds[k], f),
           cost::cache_bytes(c.attention, kinds[k], f, context));
  line("all, as released", cost::cache_cost(c, f), cost::cache_bytes(c, f, context));
  line("with FP8 index keys", cost::cache_cost(c, cost::cache_formats::fp8_index),
       cost::cache_bytes(c, cost::cache_formats::fp8_index, context));
  line("in BF16", cost::cache_cost(c, cost::cache_formats::bf16),
       cost::cache_bytes(c, cost::cache_formats::bf16, context));
  line("in float", cost::cache_cost(c, cost::cache_formats::float32),
       cost::cache_bytes(c, cost::cache_formats::float32, context));
  line("DeepSeek-V3.2", {0, double(cost::cache_bytes(cost::deepseek_v32, 1))},
       cost::cache_bytes(cost::deepseek_v32, context));
  const auto less = cost::compare_with_v32(c, context);
  std::printf("  as released: %.2f%% of V3.2's, %.2f times smaller\n", 100 * less.cache,
              less.cache_times_less);
}

inline void print_training(const model_config& c, std::int64_t tokens) {
  std::printf("\ntraining step in float, one document of %lld tokens\n", static_cast<long long>(tokens));
  row("what is recomputed", {"FLOPs", "weights, B", "gradients, B", "optimiser, B", "kept, B", "all, B"});
  const auto line = [&](const char* name, const recompute_policy& r) {
    const auto m = cost::training_bytes(c, tokens, 1, {.recompute = r});
    row(name, {scaled(cost::training_flops(c, tokens, r).total().raw()), scaled(m.weights),
               scaled(m.gradients), scaled(m.optimizer), scaled(m.activations), scaled(m.total())});
  };
  line("nothing", recompute::nothing);
  line("streams", recompute::streams);
  line("sublayers", recompute::sublayers);
  line("everything", recompute::everything);
}

}  // namespace cost_program
