// SPDX-License-Identifier: Apache-2.0
/// What a user asks of dsv4-run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace runner {

struct options {
  std::filesystem::path model;               ///< empty: the embedded model
  std::string device = "cpu";                ///< or cuda
  std::string scalar = "float32";            ///< what all but narrow weights is in: or, on the GPU, bf16
  bool no_graphs = false;                    ///< queue every kernel of a decode step by itself
  std::string numerics;                      ///< empty: a directory's own, or float32
  std::filesystem::path save, save_headers;  ///< write the model, or its headers, there, and stop
  bool plan = false;                         ///< print what would be read, and stop
  std::int64_t context = 4096;               ///< tokens that a plan counts caches for
  std::int64_t expert_memory = 0;  ///< bytes of memory for routed experts; 0: as the system maps them
  std::string prompt;
  std::int64_t max_tokens = 128, chunk = 512;
  double temperature = 0, top_p = 1;
  std::uint64_t seed = 0;
  int threads = 0;
  std::filesystem::path perplexity, dump_file = "dump.safetensors";
  int dump_layer = -1;
  bool dump_logits = false, ignore_eos = false;
};

}  // namespace runner
