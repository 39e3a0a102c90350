// SPDX-License-Identifier: Apache-2.0
/// A checkpoint tensor by tensor, and the memory that running it takes, from its headers alone.
#pragma once

#include "console.hpp"
#include "options.hpp"
#include <dsv4/io/checkpoint_plan.hpp>

#include <cstdio>

namespace runner {

template <dsv4::model_config C, dsv4::numerics_config Q>
int print_plan(const options& o) {
  using namespace dsv4;
  const io::safetensors_checkpoint source(o.model, io::file_access::map, io::file_contents::headers_only);
  const io::checkpoint_plan plan = io::plan_checkpoint<C, float, Q>(source);
  for (const auto& t : plan.tensors)
    std::printf("%-60s %-28s %10s  %s\n", t.spec.name.c_str(),
                io::describe(t.spec.dtype, t.spec.shape).c_str(),
                bytes_text(static_cast<std::int64_t>(t.bytes)).c_str(), t.file.c_str());
  const auto row = [](const char* what, std::int64_t bytes) {
    std::printf("%-60s %s\n", what, bytes_text(bytes).c_str());
  };
  const auto read = static_cast<std::int64_t>(plan.read), experts = static_cast<std::int64_t>(plan.experts);
  const std::int64_t caches = io::cache_bytes<C, float>(o.context);
  std::printf("\n%zu tensors in %zu files\n", plan.tensors.size(), source.shard_names().size());
  row("read from disk", read);
  row("  of which routed experts", experts);
  row("memory: weights in float, and tables", plan.owned);
  row("memory: narrow weights, mapped from the files", plan.mapped);
  row(("memory: caches of " + std::to_string(o.context) + " tokens").c_str(), caches);
  row("memory in all, without scratch", plan.owned + plan.mapped + caches);
  if constexpr (block_format<typename storage_types<float, Q>::expert>) {  // others are not read by and by
    const std::int64_t others = plan.owned + plan.mapped - experts + caches;
    constexpr std::int64_t layers = C.num_hidden_layers(), k = C.moe.num_experts_per_tok;
    const std::int64_t each =
        experts / ((layers + C.num_nextn_predict_layers) * std::int64_t{C.moe.n_routed_experts});
    row("  with --expert-memory for the experts of one token", others + layers * k * each);
    row("  with --expert-memory for one expert (slow)", others + each);
  }
  return 0;
}

}  // namespace runner
