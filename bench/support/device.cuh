// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks of the GPU share: random arrays on the device, and timing by graph replay. The main
/// program, in device_main.cu, measures the bounds of this GPU.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/tensor/buffer.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <support/benchmark.hpp>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4::bench {

inline constexpr space D = space::device;
inline constexpr std::int64_t prompt_rows = 4096;

/// The policy under test.
inline const exec::cuda& policy() {
  static const exec::cuda p;
  return p;
}
/// The same, on the same stream, with sums in that order.
inline const exec::cuda& policy(exec::sum_order order) {
  static const exec::cuda any(policy().stream(), exec::cuda::options{.sums = exec::sum_order::any});
  return order == exec::sum_order::any ? any : policy();
}

/// What this GPU can do at best: bytes copied (read and written) and products of bf16, per second.
struct device_bounds {
  double bytes, flops;
};
/// Measured before the first benchmark.
const device_bounds& bounds();

/// Of products in bf16.
inline double peak_flops() { return bounds().flops; }
/// Of a copy far larger than the caches, whatever the size.
inline double bandwidth(std::int64_t, traffic) { return bounds().bytes; }
/// The GPU's time, and one iteration: it is a median already.
inline void set_time(benchmark::internal::Benchmark* b) { b->UseManualTime()->Iterations(1); }

/// A dense array on the device; passes for a view.
template <class T, int R>
struct array {
  device_buffer<T> storage;
  view<T, R, D> v;

  operator view<T, R, D>() const { return v; }
  operator view<const T, R, D>() const { return v; }
};

template <class T = bf16, class... I>
array<T, static_cast<int>(sizeof...(I))> zeros(I... extents) {
  device_buffer<T> storage((std::int64_t{1} * ... * static_cast<std::int64_t>(extents)));
  const view<T, static_cast<int>(sizeof...(I)), D> v(storage.data(), static_cast<std::int64_t>(extents)...);
  return {std::move(storage), v};
}

template <class T>
__global__ void random_kernel(T* data, std::int64_t count, unsigned seed, float size, std::int64_t bound) {
  wait_for_previous_kernels();
  for (std::int64_t i = detail::global_thread(); i < count; i += detail::global_threads()) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    if constexpr (std::is_integral_v<T>)
      data[i] = static_cast<T>(bound > 0 ? x % bound : x);
    else
      data[i] = static_cast<T>((static_cast<float>(x) * 0x1p-31f - 1.0f) * size);
  }
}

/// Other numbers in every call, the same in every run: in [-size, size), or integers below `bound`, or any.
template <class T>
void fill_random(T* data, std::int64_t count, float size, std::int64_t bound = 0) {
  static unsigned seed = 0;
  const exec::cuda& p = policy();
  p.launch("bench", random_kernel<T>, detail::loop_grid(p, count, 256), 256, 0, data, count, ++seed * 7919u,
           size, bound);
}

/// Numbers in [-1, 1).
template <class T = bf16, class... I>
auto random(I... extents) {
  auto a = zeros<T>(extents...);
  fill_random(a.storage.data(), a.storage.size(), 1);
  return a;
}
/// The same of variance 1 / columns, as products want their weights.
template <class T = bf16, class... I>
auto random_weight(I... extents) {
  auto a = zeros<T>(extents...);
  fill_random(a.storage.data(), a.storage.size(),
              static_cast<float>(std::sqrt(3.0 / double(a.v.extent[sizeof...(I) - 1]))));
  return a;
}
/// Integers in [0, bound).
template <class... I>
auto random_ids(std::int64_t bound, I... extents) {
  auto a = zeros<std::int32_t>(extents...);
  fill_random(a.storage.data(), a.storage.size(), 1, bound);
  return a;
}
/// What fill(view) writes into a dense array on the host, on the device.
template <class T, class Fill, class... I>
auto filled(const Fill& fill, I... extents) {
  auto a = zeros<T>(extents...);
  buffer<T> host(a.storage.size());
  fill(view<T, static_cast<int>(sizeof...(I))>(host.data(), static_cast<std::int64_t>(extents)...));
  copy_elements(policy().stream(), host.data(), a.storage.data(), host.size());
  policy().synchronise();
  return a;
}

/// What run() queues, as a graph; it has run before, so that nothing is allocated.
template <class Run>
class captured {
 public:
  explicit captured(const Run& run) {
    detail::check_cuda(cudaStreamBeginCapture(policy().stream(), cudaStreamCaptureModeGlobal), "bench");
    try {
      run();
    } catch (...) {  // the stream is the next benchmark's
      cudaStreamEndCapture(policy().stream(), &graph_);
      throw;
    }
    detail::check_cuda(cudaStreamEndCapture(policy().stream(), &graph_), "bench");
    detail::check_cuda(cudaGraphInstantiate(&ready_, graph_, 0), "bench");
  }
  captured(const captured&) = delete;
  captured& operator=(const captured&) = delete;
  ~captured() { cudaGraphExecDestroy(ready_), cudaGraphDestroy(graph_); }

  void operator()() const { detail::check_cuda(cudaGraphLaunch(ready_, policy().stream()), "bench"); }
  /// Kernels and copies.
  std::size_t launches() const {
    std::size_t nodes = 0;
    detail::check_cuda(cudaGraphGetNodes(graph_, nullptr, &nodes), "bench");
    return nodes;
  }

 private:
  cudaGraph_t graph_;
  cudaGraphExec_t ready_;
};

/// Seconds of the GPU from the first to the last thing that run() queues.
template <class Run>
double device_seconds(const Run& run) {
  struct event {
    event() { detail::check_cuda(cudaEventCreate(&e), "bench"); }
    ~event() { cudaEventDestroy(e); }
    cudaEvent_t e;
  };
  static const event begin, end;
  cudaEventRecord(begin.e, policy().stream());
  run();
  cudaEventRecord(end.e, policy().stream());
  policy().synchronise();
  float ms = 0;
  detail::check_cuda(cudaEventElapsedTime(&ms, begin.e, end.e), "bench");
  return double(ms) * 1e-3;
}

/// The median of as many runs as take a third of a second, 3 to 15, after two.
template <class Run>
double median_seconds(const Run& run) {
  device_seconds(run);
  const double once = device_seconds(run);
  std::vector<double> times(static_cast<std::size_t>(std::clamp(0.3 / once, 3.0, 15.0)));
  for (double& t : times) t = device_seconds(run);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// The time of body(), which is captured into a graph that is replayed. The graph's start takes some
/// microseconds: of what takes less than ten, 16 calls follow one another in the graph.
template <class Body>
void measure(benchmark::State& state, const Body& body) {
  body();
  policy().synchronise();
  for (auto _ : state) {
    const captured once(body);
    double seconds = median_seconds(once);
    if (seconds < 10e-6) {
      constexpr int calls = 16;
      seconds = median_seconds(captured([&] {
                  for (int i = 0; i < calls; ++i) body();
                })) /
                calls;
    }
    state.SetIterationTime(seconds);
    state.counters["launches"] = double(once.launches());
  }
}
/// The same of body(0) ... body(calls - 1), one after the other, where each needs operands of its own.
template <class Body>
void measure_each(benchmark::State& state, int calls, const Body& body) {
  const auto all = [&] {
    for (int i = 0; i < calls; ++i) body(i);
  };
  all();
  policy().synchronise();
  for (auto _ : state) state.SetIterationTime(median_seconds(captured(all)) / calls);
}
/// The same without a graph, of a body that waits for the device.
template <class Body>
void measure_waiting(benchmark::State& state, const Body& body) {
  body();
  for (auto _ : state) state.SetIterationTime(median_seconds(body));
}

/// Registers body(state, config) as name/size at all sizes, for numbers of rows and the contexts that they
/// end.
template <class Body>
bool at_every_context(const std::string& name,
                      const std::vector<std::vector<std::int64_t>>& rows_and_contexts, const Body& body) {
  for (const size& s : sizes) {
    auto* b = add(name + "/" + s.name, [body, &s](benchmark::State& state) { body(state, s.config); });
    b->ArgNames({"rows", "context"});
    for (const auto& arguments : rows_and_contexts) b->Args(arguments);
  }
  return true;
}

/// A configuration as the type of an argument.
template <model_config C>
struct compiled_for {
  static constexpr model_config config = C;
};
/// Registers body(state, compiled_for<config>()) as name/size, for blocks, whose sizes are part of their
/// type. `argument` is what the numbers are of.
template <class Body>
bool at_device_sizes(const std::string& name, std::initializer_list<std::int64_t> numbers, const Body& body,
                     const char* argument = "rows") {
  const auto of = [body]<model_config C>(benchmark::State& state) { body(state, compiled_for<C>()); };
  at_compiled_size<v4_nano>("nano", name, numbers, of, argument);
  at_compiled_size<v4_flash>("flash", name, numbers, of, argument);
  at_compiled_size<v4_pro>("pro", name, numbers, of, argument);
  return true;
}

/// Elements of T that one call must read or write.
template <class T = bf16>
void report_elements(benchmark::State& state, std::int64_t count) {
  report_bytes(state, count * static_cast<std::int64_t>(sizeof(T)));
}

/// A body for at_every_size: `call` of Operands(configuration, rows), which returns the elements that it
/// moves per row.
template <class Operands>
auto moving(std::int64_t (Operands::*call)()) {
  return [=](benchmark::State& state, const model_config& c) {
    Operands o(c, state.range(0));
    std::int64_t moved = 0;
    measure(state, [&] { moved = (o.*call)(); });
    report_elements(state, o.rows * moved);
  };
}

}  // namespace dsv4::bench
