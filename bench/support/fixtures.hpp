// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks share: sizes, random operands, rates.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <support/ceilings.hpp>
#include <utility>

namespace dsv4::bench {

/// The 100M-parameter configuration; N is 1 (decode) and 512 (prefill).
inline constexpr model_config config = v4_bench;
inline constexpr std::int64_t decode_rows = 1, prefill_rows = 512;

/// The sizes that ops are measured at.
struct size {
  const char* name;
  model_config config;
};
inline constexpr size sizes[] = {{"nano", v4_nano}, {"100m", v4_bench}, {"flash", v4_flash}, {"pro", v4_pro}};

/// Registers body(state, config) as name/size, for the given numbers of rows. Times are wall times, because
/// the work is spread over threads.
template <class Body>
void at_size(const size& s, const std::string& name, std::initializer_list<std::int64_t> rows,
             const Body& body) {
  auto* b = benchmark::RegisterBenchmark((name + "/" + s.name).c_str(),
                                         [body, &s](benchmark::State& state) { body(state, s.config); });
  b->ArgName("rows")->UseRealTime();
  for (const std::int64_t n : rows) b->Arg(n);
}

/// The same at all sizes. A name is op/pass: "rms_norm/forward".
template <class Body>
bool at_every_size(const std::string& name, std::initializer_list<std::int64_t> rows, const Body& body) {
  for (const size& s : sizes) at_size(s, name, rows, body);
  return true;
}

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

/// Operations of one call, per second and as a share of the multiply-adds that the machine can do.
inline void report_flops(benchmark::State& state, double flops) {
  using benchmark::Counter;
  state.counters["FLOP/s"] = Counter(flops, Counter::kIsIterationInvariantRate, Counter::kIs1000);
  state.counters["of_peak"] = Counter(flops / peak_flops(), Counter::kIsIterationInvariantRate);
}
/// Bytes that one call must move at least once, per second and as a share of what the machine moves in a
/// working set of that size.
inline void report_bytes(benchmark::State& state, std::int64_t bytes, traffic kind = traffic::copy) {
  using benchmark::Counter;
  state.SetBytesProcessed(state.iterations() * bytes);
  state.counters["of_bandwidth"] =
      Counter(double(bytes) / bandwidth(bytes, kind), Counter::kIsIterationInvariantRate);
}
/// The same for elements of float that one call must read or write.
inline void report_floats(benchmark::State& state, std::int64_t floats, traffic kind = traffic::copy) {
  report_bytes(state, floats * static_cast<std::int64_t>(sizeof(float)), kind);
}
inline void report_rows(benchmark::State& state, std::int64_t rows) {
  state.SetItemsProcessed(state.iterations() * rows);
}

/// One row, and a prefill of rows; wall time, because the work is spread over threads.
inline void decode_and_prefill(benchmark::internal::Benchmark* b) {
  b->ArgName("rows")->Arg(decode_rows)->Arg(prefill_rows)->UseRealTime();
}

}  // namespace dsv4::bench
