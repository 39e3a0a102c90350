// SPDX-License-Identifier: Apache-2.0
#include <dsv4/io/training_folder.hpp>
#include <dsv4/train/optimizer.hpp>

#include <filesystem>
#include <string>
#include <support/fixtures.hpp>
#include <unistd.h>

namespace {
using namespace dsv4;

/// Weights and optimiser state of the nano configuration, synced to the disk under the temporary folder.
void training_state_save(benchmark::State& state) {
  const auto path = std::filesystem::temp_directory_path() / ("dsv4_bench" + std::to_string(::getpid()));
  parameter_store<v4_nano, float> weights;
  optimizer<v4_nano, float, bf16> update;
  io::training_state saved;
  saved.add_parameters(weights);
  saved.add_optimizer(update);
  const io::training_folder folder(path);
  std::int64_t step = 0;
  for (auto _ : state) folder.save(saved, ++step);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(saved.bytes()));
  std::filesystem::remove_all(path);
}
BENCHMARK(training_state_save)->UseRealTime();
}  // namespace
