// SPDX-License-Identifier: Apache-2.0
/// dsv4-cost: what a configuration costs, as tables and as curves over the context.
#include "cost/read_config.hpp"
#include "cost/svg.hpp"
#include "cost/tables.hpp"

#include <CLI/CLI.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {
using namespace dsv4;
using namespace cost_program;

const std::map<std::string, model_config> presets{
    {"v4_flash", v4_flash}, {"v4_pro", v4_pro}, {"v4_bench", v4_bench}, {"v4_nano", v4_nano}};

/// FLOPs and caches of V3.2, Pro, Flash and, where it is another one, the chosen model.
void draw(const std::filesystem::path& folder, const std::string& name, const model_config& chosen,
          std::int64_t context) {
  std::vector<std::pair<std::string, model_config>> models{{"V4-Pro", v4_pro}, {"V4-Flash", v4_flash}};
  if (!(chosen == v4_pro) && !(chosen == v4_flash)) models.emplace_back(name, chosen);
  chart flops{
      "One token's FLOPs over its context", "thousand tokens of context", "TFLOPs in FP8 equivalents", {}};
  chart cache{"KV cache over the context", "thousand tokens of context", "GB per sequence", {}};
  constexpr int points = 200;
  const auto add = [&](const std::string& label, const auto& flops_at, const auto& cache_at) {
    flops.curves.push_back({label, {}});
    cache.curves.push_back({label, {}});
    for (int i = 0; i <= points; ++i) {
      const std::int64_t n = context * i / points;
      flops.curves.back().points.push_back({double(n) / 1000, flops_at(n) / 2e12});
      cache.curves.back().points.push_back({double(n) / 1000, double(cache_at(n)) / 1e9});
    }
  };
  add(
      "V3.2",
      [](std::int64_t n) {
        return double(cost::twice_fp8_equivalent(cost::decode_flops(cost::deepseek_v32, n), false));
      },
      [](std::int64_t n) { return cost::cache_bytes(cost::deepseek_v32, n); });
  for (const auto& [label, config] : models) {
    const auto& c = config;  // a binding is not captured
    add(
        label,
        [&](std::int64_t n) {
          return double(cost::twice_fp8_equivalent(cost::decode_flops(c, n).total(), true));
        },
        [&](std::int64_t n) { return cost::cache_bytes(c, cost::cache_formats::released, n); });
  }
  std::filesystem::create_directories(folder);
  write_svg((folder / "cost-flops.svg").string(), flops);
  write_svg((folder / "cost-cache.svg").string(), cache);
}
}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"What a DeepSeek-V4 configuration costs: parameters, FLOPs, caches, training memory"};
  std::string name = "v4_flash", config, folder;
  std::int64_t context = 1'000'000, tokens = 4096;
  app.option_defaults()->always_capture_default();
  app.add_option("--model", name, "v4_flash, v4_pro, v4_bench or v4_nano")->check(CLI::IsMember(presets));
  app.add_option("--config", config, "a config.json instead");
  app.add_option("--context", context, "tokens of context")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  app.add_option("--train-tokens", tokens, "tokens of a training document")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30));
  app.add_option("--svg", folder, "also draw the curves into this folder");
  CLI11_PARSE(app, argc, argv);
  try {
    const model_config c = config.empty() ? presets.at(name) : read_config(config);
    if (!config.empty()) name = std::filesystem::path(config).parent_path().filename().string();
    if (name.empty()) name = "this model";
    print_weights(c);
    print_flops(c, context);
    print_cache(c, context);
    print_training(c, tokens);
    if (!folder.empty()) draw(folder, name, c, context);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dsv4-cost: %s\n", error.what());
    return 1;
  }
  return 0;
}
