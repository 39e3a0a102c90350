// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks of the GPU share: random arrays on the device, timing by graph replay, and the
/// ceilings of this GPU, measured in the same run.
#pragma once

#include <dsv4/cuda.cuh>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4::bench {

inline constexpr space D = space::device;

template <class T>
__global__ void fill_kernel(T* data, std::int64_t count, unsigned seed, float size) {
  wait_for_previous_kernels();
  for (std::int64_t i = detail::global_thread(); i < count; i += detail::global_threads()) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    if constexpr (std::is_integral_v<T>)
      data[i] = static_cast<T>(x);
    else
      data[i] = static_cast<T>((static_cast<float>(x) * 0x1p-31f - 1.0f) * size);
  }
}

/// `count` numbers in [-size, size), or random bits for integers.
template <class T>
device_buffer<T> random(const exec::cuda& p, std::int64_t count, float size = 1) {
  static unsigned seed = 1;
  device_buffer<T> b(count);
  p.launch("bench", fill_kernel<T>, detail::loop_grid(p, count, 256), 256, 0, b.data(), count, seed++ * 7919u,
           size);
  return b;
}

/// Random numbers in [-size, size), as format F rounds them.
template <class F>
void fill_random(const exec::cuda& p, const block_scaled_matrix<F, D>& to, float size = 1) {
  const auto wide = random<bf16>(p, to.extent[0] * to.extent[1], size);
  quantise<F, bf16, D>::forward(p, {wide.as(to.extent[0], to.extent[1])}, {to});
  p.synchronise();
}

/// Random matrices and stacks of format F, which live as long as this.
template <class F>
class random_matrices {
 public:
  explicit random_matrices(const exec::cuda& p) : p_(p) {}
  block_scaled_matrix<const F, D> take(std::int64_t rows, std::int64_t columns, float size = 1) {
    codes_.emplace_back(rows * F::row_bytes(columns));
    scales_.emplace_back(F::scale_rows(rows) * F::scale_columns(columns));
    const block_scaled_matrix<F, D> m(codes_.back().data(), scales_.back().data(), rows, columns);
    fill_random(p_, m, size);
    return m;
  }
  block_scaled_stack<const F, D> take(std::int64_t count, std::int64_t rows, std::int64_t columns,
                                      float size = 1) {
    buffer<block_scaled_matrix<const F, D>> table(count);
    for (auto& m : table) m = take(rows, columns, size);
    tables_.push_back(to_device(p_.stream(), table));
    block_scaled_stack<const F, D> stack;
    stack.matrices = tables_.back().data();
    stack.extent[0] = count, stack.extent[1] = rows, stack.extent[2] = columns;
    return stack;
  }

 private:
  const exec::cuda& p_;
  std::vector<device_buffer<std::uint8_t>> codes_;
  std::vector<device_buffer<e8m0>> scales_;
  std::vector<device_buffer<block_scaled_matrix<const F, D>>> tables_;
};

/// What run() queues, as a graph.
template <class Run>
cudaGraph_t captured(const exec::cuda& p, const Run& run) {
  cudaGraph_t graph;
  detail::check_cuda(cudaStreamBeginCapture(p.stream(), cudaStreamCaptureModeGlobal), "bench");
  run();
  detail::check_cuda(cudaStreamEndCapture(p.stream(), &graph), "bench");
  return graph;
}

/// How many kernels and copies run() queues, which has run before.
template <class Run>
std::size_t launches(const exec::cuda& p, const Run& run) {
  const cudaGraph_t graph = captured(p, run);
  std::size_t nodes = 0;
  detail::check_cuda(cudaGraphGetNodes(graph, nullptr, &nodes), "bench");
  cudaGraphDestroy(graph);
  return nodes;
}

/// Median milliseconds of one call of run(), which is captured into a graph and replayed. A graph's start
/// takes some microseconds: of what is short, `calls` follow one another in the graph, as run(0), run(1) ...
template <class Run>
double milliseconds(const exec::cuda& p, const Run& run_one, int repeats = 15, int calls = 1) {
  const auto run = [&] {
    for (int i = 0; i < calls; ++i)
      if constexpr (std::is_invocable_v<Run, int>)
        run_one(i);
      else
        run_one();
  };
  run();
  p.synchronise();
  const cudaGraph_t graph = captured(p, run);
  cudaGraphExec_t ready;
  detail::check_cuda(cudaGraphInstantiate(&ready, graph, 0), "bench");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
    cudaEventRecord(begin, p.stream());
    detail::check_cuda(cudaGraphLaunch(ready, p.stream()), "bench");
    cudaEventRecord(end, p.stream());
    p.synchronise();
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 2) times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end), cudaGraphExecDestroy(ready), cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / calls;
}

/// One line: what, and its time.
inline void line(const std::string& what, double ms) {
  std::printf("%-58s %9.4f\n", what.c_str(), ms);
  std::fflush(stdout);
}

/// What this GPU can do at best: bytes copied (read and written) and bf16 products, per second.
struct ceilings {
  double bytes, flops;
  static ceilings measure(const exec::cuda& p) {
    ceilings c{};
    {
      const std::int64_t n = std::int64_t{1} << 30;
      const auto from = random<std::uint32_t>(p, n / 4);
      device_buffer<std::uint32_t> to(n / 4);
      const double ms = milliseconds(p, [&] {  // faster than the runtime's own copy, on an H100
        copy_rows<std::uint32_t, D>::forward(p, {from.as(1024, n / 4096), 0, 0, 1024},
                                             {to.as(1024, n / 4096)});
      });
      c.bytes = 2.0 * double(n) / ms * 1e3;
    }
    {
      const std::int64_t n = 8192;
      const auto x = random<bf16>(p, n * n), w = random<bf16>(p, n * n);
      device_buffer<bf16> y(n * n);
      const double ms = milliseconds(
          p,
          [&] {
            linear<bf16, D>::forward(p, {x.as(n, n), w.as(n, n)}, {y.as(n, n)});
          },
          10);
      c.flops = 2.0 * double(n) * double(n) * double(n) / ms * 1e3;
    }
    cudaDeviceProp device;
    cudaGetDeviceProperties(&device, p.device().index);
    std::printf("%s: copy %.2f TB/s, bf16 GEMM 8192 %.0f TFLOP/s\n", device.name, c.bytes * 1e-12,
                c.flops * 1e-12);
    std::printf("%-58s %9s %8s %8s %6s\n", "", "ms", "TFLOP/s", "GB/s", "bound");
    return c;
  }
  /// One line: the time, rates, and how much of the slower ceiling's time it is.
  void report(const std::string& what, double ms, double operations, double moved) const {
    const double bound = std::max(operations / flops, moved / bytes) * 1e3;
    std::printf("%-58s %9.4f %8.1f %8.0f %5.0f%%\n", what.c_str(), ms, operations / ms * 1e-9,
                moved / ms * 1e-6, 100 * bound / ms);
    std::fflush(stdout);
  }
};

}  // namespace dsv4::bench
