// SPDX-License-Identifier: Apache-2.0
/// The main program of every benchmark of the GPU: measures the bounds, then runs what the others registered.
#include <dsv4/ops/cuda/copy_rows.cuh>

#include <cstdio>
#include <exception>
#include <support/device.cuh>

namespace dsv4::bench {
namespace {

/// Faster than the runtime's own copy, on an H100.
double copied_bytes_per_second() {
  const std::int64_t rows = 1024, width = std::int64_t{1} << 18;  // of 4 bytes: 1 GiB
  const auto from = random<std::uint32_t>(rows, width), to = zeros<std::uint32_t>(rows, width);
  const auto copy = [&] { copy_rows<std::uint32_t, D>::forward(policy(), {from, 0, 0, rows}, {to}); };
  copy();
  return 2.0 * 4 * double(rows * width) / median_seconds(captured(copy));
}

/// cuBLASLt's product of square matrices.
double bf16_flops_per_second() {
  const std::int64_t n = 8192;
  const auto x = random(n, n), weight = random(n, n), y = zeros(n, n);
  exec::cuda_matmul::problem m{};
  m.rows = m.columns = m.inner = n, m.batch = 1;
  m.x = x.v.data, m.weight = weight.v.data, m.y = y.v.data;
  m.x_stride = m.weight_stride = m.y_stride = n;
  m.x_type = m.weight_type = m.y_type = CUDA_R_16BF;
  m.compute = CUBLAS_COMPUTE_32F, m.scale_type = CUDA_R_32F;
  const auto product = [&] {
    expect(policy().matmul("bench", m), "bench", "cuBLASLt", "an algorithm for bf16", 0);
  };
  product();
  return 2.0 * double(n) * double(n) * double(n) / median_seconds(captured(product));
}

/// Measures when the first benchmark is about to run: not for a list, nor where a filter leaves nothing.
class reporter : public benchmark::ConsoleReporter {
 public:
  bool ReportContext(const Context& context) override {
    cudaDeviceProp gpu;
    detail::check_cuda(cudaGetDeviceProperties(&gpu, policy().device().index), "bench");
    const auto add = [](const char* name, const char* format, double value) {
      char text[32];
      std::snprintf(text, sizeof text, format, value);
      benchmark::AddCustomContext(name, text);
    };
    benchmark::AddCustomContext("GPU", gpu.name);
    add("copy, TB/s", "%.2f", bounds().bytes * 1e-12);
    add("bf16 product, TFLOP/s", "%.0f", bounds().flops * 1e-12);
    return ConsoleReporter::ReportContext(context);
  }
};
}  // namespace

const device_bounds& bounds() {
  static const device_bounds b{copied_bytes_per_second(), bf16_flops_per_second()};
  return b;
}

}  // namespace dsv4::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  try {
    dsv4::bench::reporter reporter;
    benchmark::RunSpecifiedBenchmarks(&reporter);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
