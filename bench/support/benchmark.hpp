// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks of the CPU and of the GPU share: sizes, names, rates.
#pragma once

#include <dsv4/config/presets.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>

namespace dsv4::bench {

enum class traffic { read, copy };

// What the two have of their own: fixtures.hpp defines these for the CPU, device.cuh for the GPU.
/// Floating-point operations per second, at most.
inline double peak_flops();
/// Bytes per second, at most, that are read, or read and written, in a working set of about `bytes`.
inline double bandwidth(std::int64_t bytes, traffic kind);
/// Chooses the time that is reported.
inline void set_time(benchmark::internal::Benchmark* b);

inline constexpr std::int64_t decode_rows = 1;

/// The sizes that ops are measured at.
struct size {
  const char* name;
  model_config config;
};
inline constexpr size sizes[] = {{"nano", v4_nano}, {"100m", v4_bench}, {"flash", v4_flash}, {"pro", v4_pro}};

/// Registers body(state), which may throw.
template <class Body>
benchmark::internal::Benchmark* add(const std::string& name, const Body& body) {
  auto* b = benchmark::RegisterBenchmark(name.c_str(), [body](benchmark::State& state) {
    try {
      body(state);
    } catch (const std::exception& failure) {  // no memory, say: the others can still run
      state.SkipWithError(failure.what());
    }
  });
  set_time(b);
  return b;
}

/// Registers body(state, config) as name/size, for the given numbers of rows.
template <class Body>
void at_size(const size& s, const std::string& name, std::initializer_list<std::int64_t> rows,
             const Body& body) {
  auto* b = add(name + "/" + s.name, [body, &s](benchmark::State& state) { body(state, s.config); });
  b->ArgName("rows");
  for (const std::int64_t n : rows) b->Arg(n);
}

/// The same at all sizes. A name is op/pass: "rms_norm/forward".
template <class Body>
bool at_every_size(const std::string& name, std::initializer_list<std::int64_t> rows, const Body& body) {
  for (const size& s : sizes) at_size(s, name, rows, body);
  return true;
}

/// Registers body.operator()<C>(state) as name/size. What a block is compiled for is part of its type, so
/// `body` is a lambda with a template parameter. `argument` is what the numbers are of.
template <model_config C, class Body>
void at_compiled_size(const char* size, const std::string& name, std::initializer_list<std::int64_t> numbers,
                      const Body& body, const char* argument = "rows") {
  auto* b = add(name + "/" + size, [body](benchmark::State& state) { body.template operator()<C>(state); });
  b->ArgName(argument)->Unit(benchmark::kMillisecond);
  for (const std::int64_t n : numbers) b->Arg(n);
}

/// `C` with a single layer of that kind, a short vocabulary, learned routing and no drafts.
template <model_config C, attention_kind K, int Vocabulary = 16>
inline constexpr model_config one_layer = [] {
  model_config c = C;
  c.vocab_size = Vocabulary;
  c.bos_token_id = c.eos_token_id = 0;
  c.layers = schedule({K});
  c.moe.num_hash_layers = 0;
  c.num_nextn_predict_layers = 0;
  return c;
}();

/// Operations of one call, per second and as a share of what the machine can do.
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
inline void report_rows(benchmark::State& state, std::int64_t rows) {
  state.SetItemsProcessed(state.iterations() * rows);
}

}  // namespace dsv4::bench
