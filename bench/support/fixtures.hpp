// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks of the CPU share: random operands, wall time.
#pragma once

#include <dsv4/cpu.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <support/benchmark.hpp>
#include <support/ceilings.hpp>
#include <utility>

namespace dsv4::bench {

/// The 100M-parameter configuration; N is 1 (decode) and 512 (prefill).
inline constexpr model_config config = v4_bench;
inline constexpr std::int64_t prefill_rows = 512;

/// Wall time, because the work is spread over threads.
inline void set_time(benchmark::internal::Benchmark* b) { b->UseRealTime(); }

/// Whether operands of `bytes` are more than DSV4_BENCH_BYTES (2 GB if not set); says so in the results.
inline bool too_large(benchmark::State& state, std::int64_t bytes) {
  static const std::int64_t most = [] {
    const char* given = std::getenv("DSV4_BENCH_BYTES");
    return given ? std::atoll(given) : 2'000'000'000;
  }();
  if (bytes <= most) return false;
  state.SkipWithError(("needs " + std::to_string(bytes / 1'000'000) + " MB").c_str());
  return true;
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

/// Elements of float that one call must read or write.
inline void report_floats(benchmark::State& state, std::int64_t floats, traffic kind = traffic::copy) {
  report_bytes(state, floats * static_cast<std::int64_t>(sizeof(float)), kind);
}

}  // namespace dsv4::bench
