// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks share: the policy under test, random operands, rates.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

namespace dsv4::bench {

/// Sizes are those of the 100M-parameter configuration; N is 1 (decode) and 512 (prefill).
inline constexpr model_config config = v4_bench;
inline constexpr std::int64_t decode_rows = 1, prefill_rows = 512;

/// The policy under test, on DSV4_BENCH_THREADS threads or as many as the machine has.
inline const exec::cpu& policy() {
  static const exec::cpu p = [] {
    const char* threads = std::getenv("DSV4_BENCH_THREADS");
    return threads ? exec::cpu(std::atoi(threads)) : exec::cpu();
  }();
  return p;
}

/// A dense array and its storage; passes for a view.
template <class T, int R>
struct array {
  buffer<T> storage;
  view<T, R> v;

  operator view<T, R>() const { return v; }
  operator view<const T, R>() const { return v; }
};

template <class T = float, class... I>
array<T, static_cast<int>(sizeof...(I))> zeros(I... extents) {
  buffer<T> storage((std::int64_t{1} * ... * static_cast<std::int64_t>(extents)));
  const view<T, static_cast<int>(sizeof...(I))> v(storage.data(), extents...);
  return {std::move(storage), v};
}

/// Numbers in [-1, 1), the same in every run.
template <class... I>
auto random(I... extents) {
  auto a = zeros(extents...);
  std::uint32_t state = 0x9E3779B9u;
  for (float& x : a.storage) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
  return a;
}

/// Integers in [0, bound), the same in every run.
template <class... I>
auto random_ids(std::int32_t bound, I... extents) {
  auto a = zeros<std::int32_t>(extents...);
  std::uint32_t state = 0x2545F491u;
  for (std::int32_t& x : a.storage) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(bound));
  }
  return a;
}

/// Runs `body` as often as the benchmark wants.
template <class Body>
void measure(benchmark::State& state, const Body& body) {
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
}

/// Work of one call, reported per second.
inline void report_flops(benchmark::State& state, double flops) {
  state.counters["FLOP/s"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}
/// Elements of float that one call must read or write at least once.
inline void report_floats(benchmark::State& state, std::int64_t floats) {
  state.SetBytesProcessed(state.iterations() * floats * static_cast<std::int64_t>(sizeof(float)));
}
inline void report_rows(benchmark::State& state, std::int64_t rows) {
  state.SetItemsProcessed(state.iterations() * rows);
}

/// One row, and a prefill of rows; wall time, because the work is spread over threads.
inline void decode_and_prefill(benchmark::internal::Benchmark* b) {
  b->ArgName("rows")->Arg(decode_rows)->Arg(prefill_rows)->UseRealTime();
}

}  // namespace dsv4::bench
