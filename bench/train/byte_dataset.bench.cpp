// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/byte_dataset.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <span>
#include <string>

namespace {
using namespace dsv4;

/// 4 MiB in documents of 1 to 4096 bytes.
const std::string& text() {
  static const std::string all = [] {
    std::string s;
    for (std::uint64_t d = 0; s.size() < (std::size_t{4} << 20); ++d)
      s += std::string(1 + detail::splitmix64(d) % 4096, 'a') + '\n';
    return s;
  }();
  return all;
}

void byte_dataset_pack(benchmark::State& state) {
  for (auto _ : state)
    benchmark::DoNotOptimize(
        byte_dataset(std::as_bytes(std::span(text())), {.row_tokens = state.range(0), .separator = "\n"}));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text().size()));
}
BENCHMARK(byte_dataset_pack)->ArgName("row")->Arg(512)->Arg(4096);

void byte_dataset_rows(benchmark::State& state) {
  const byte_dataset data(std::as_bytes(std::span(text())),
                          {.row_tokens = state.range(0), .separator = "\n"});
  packed_row row;
  std::int64_t position = 0, tokens = 0;
  for (auto _ : state) {
    data.training_row(position++, row);
    tokens += row.offsets.back();
  }
  state.SetItemsProcessed(tokens);
}
BENCHMARK(byte_dataset_rows)->ArgName("row")->Arg(512)->Arg(4096);
}  // namespace
