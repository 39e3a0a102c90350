// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cpu/newton_schulz.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

/// 8 + 2 steps. FLOP/s are nominal: 2 (2 n^2 m + n^3) a step, as if no product were symmetric.
void newton_schulz_batch(benchmark::State& state, newton_schulz_form form, newton_schulz_products products) {
  const std::int64_t batch = state.range(0), rows = state.range(1), columns = state.range(2);
  const auto x = bench::random(batch, rows, columns), y = bench::zeros(batch, rows, columns);
  workspace w;
  bench::measure(state, [&] {
    newton_schulz<float>::forward(bench::policy(), w, {.x = x.v, .form = form, .products = products}, {y.v});
  });
  const double n = double(std::min(rows, columns)), m = double(std::max(rows, columns));
  bench::report_flops(state, double(batch) * 10 * (4 * n * n * m + 2 * n * n * n));
}

/// Batch, rows, columns: of the nano and the 100M configuration, near and far from the square, one large.
void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "rows", "columns"})->UseRealTime();
  for (const std::vector<std::int64_t>& shape :
       std::initializer_list<std::vector<std::int64_t>>{{32, 64, 96},
                                                        {8, 384, 512},
                                                        {8, 512, 384},
                                                        {4, 512, 512},
                                                        {4, 512, 576},
                                                        {4, 512, 640},
                                                        {4, 256, 1024},
                                                        {16, 24, 2048},
                                                        {1, 1024, 2048}})
    b->Args(shape);
}
BENCHMARK_CAPTURE(newton_schulz_batch, standard, newton_schulz_form::standard, newton_schulz_products::full)
    ->Apply(shapes);
BENCHMARK_CAPTURE(newton_schulz_batch, gram, newton_schulz_form::gram, newton_schulz_products::full)
    ->Apply(shapes);
BENCHMARK_CAPTURE(newton_schulz_batch, bf16, newton_schulz_form::standard, newton_schulz_products::bf16)
    ->Apply(shapes);
}  // namespace
