// SPDX-License-Identifier: Apache-2.0
/// What dsv4-train is asked to do, and its parts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace training_program {

struct options {
  std::filesystem::path data, out = "trained", log;
  std::string config = "v4_nano", optimizer = "muon", residual = "mhc", numerics = "float32", device = "cpu";
  std::int64_t steps = 1000, rows = 8, microbatch = 8, row_tokens = 512, save_every = 100,
               evaluate_every = 50, held_out_rows = 16, dense_steps = 0;
  double minutes = 0, rate = 0, decay = 0.3;
  std::uint64_t seed = 0;
  int threads = 0;
  std::string separator;
  bool resume = false, rules = false;
};

/// The whole program, but for options. In builds with DSV4_WITH_CUDA only.
int train_on_gpu(const options& o);

}  // namespace training_program
