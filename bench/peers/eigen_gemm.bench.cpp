// SPDX-License-Identifier: Apache-2.0
// Eigen's own float matrix product, one of 1024^3 per thread at a time: the yardstick of the model's forward.
#include <dsv4/tensor/eigen.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

void eigen_gemm(benchmark::State& state) {
  constexpr std::int64_t n = 1024;
  const int threads = bench::policy().threads();
  const auto a = bench::random(n, n), b = bench::random(n, n);
  const auto c = bench::zeros(threads, n, n);
  bench::measure(state, [&] {
    bench::policy().parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        as_eigen(c.v[i]).noalias() = as_eigen(a.v) * as_eigen(b.v).transpose();
    });
  });
  state.SetLabel(Eigen::SimdInstructionSetsInUse());
  bench::report_flops(state, 2.0 * double(threads * n * n * n));
}
BENCHMARK(eigen_gemm)->Unit(benchmark::kMillisecond)->UseRealTime();
}  // namespace
