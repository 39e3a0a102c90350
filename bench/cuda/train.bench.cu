// SPDX-License-Identifier: Apache-2.0
/// The optimiser's ops at sizes of V4-Flash: Newton-Schulz of ten steps, and what goes over all parameters.
#include "support/device.cuh"
#include <dsv4/train/cuda.cuh>

#include <vector>

using namespace dsv4;
using namespace dsv4::bench;

namespace {

/// FLOP/s are nominal: 2 (2 n^2 m + n^3) a step, as if no product were symmetric.
void bench_newton_schulz(const exec::cuda& p, const ceilings& c, std::int64_t batch, std::int64_t rows,
                         std::int64_t columns, newton_schulz_products products, newton_schulz_form form,
                         int repeats) {
  const auto x = random<float>(p, batch * rows * columns);
  device_buffer<float> y(batch * rows * columns);
  device_workspace w;
  const double ms = milliseconds(
      p,
      [&] {
        newton_schulz<float, D>::forward(
            p, w, {.x = x.as(batch, rows, columns), .form = form, .products = products},
            {y.as(batch, rows, columns)});
      },
      repeats);
  const double n = double(std::min(rows, columns)), m = double(std::max(rows, columns));
  c.report("newton_schulz " + std::to_string(batch) + " x " + std::to_string(rows) + " x " +
               std::to_string(columns) + (products == newton_schulz_products::bf16 ? ", bf16" : ", float") +
               (form == newton_schulz_form::gram       ? ", gram"
                : form == newton_schulz_form::standard ? ", standard"
                                                       : ""),
           ms, double(batch) * 10 * (4 * n * n * m + 2 * n * n * n), 0);
}

void bench_updates(const exec::cuda& p, const ceilings& c, std::int64_t count) {
  const auto gradient = random<float>(p, count);
  auto weight = random<float>(p, count), first = random<float>(p, count), second = random<float>(p, count);
  const double bytes = 4.0 * double(count);
  c.report("adamw, 64M",
           milliseconds(p,
                        [&] {
                          adamw<float, D>::forward(p, {gradient.as(count), 1e-3, 10},
                                                   {weight.as(count), first.as(count), second.as(count)});
                        }),
           0, 7 * bytes);
  device_workspace w;
  device_buffer<double> sum(1);
  c.report("squared_norm, 64M",
           milliseconds(p, [&] { squared_norm<float, D>::forward(p, w, {gradient.as(count)}, {sum.as(1)}); }),
           0, bytes);
  const std::int64_t n = count / 8;
  std::vector<muon_matrix<float, float, D>> matrices;
  for (int i = 0; i < 8; ++i)
    matrices.push_back(
        {weight.as(8, 2048, n / 2048)[i], gradient.as(8, 2048, n / 2048)[i], first.as(8, 2048, n / 2048)[i]});
  c.report("muon_momentum, 8 x 2048 x 4096",
           milliseconds(p,
                        [&] {
                          muon_momentum<float, float, D>::forward(p, {matrices, 0.95, true, 1},
                                                                  {second.as(8, 2048, n / 2048)});
                        }),
           0, 4 * bytes);
  c.report("muon_apply, 8 x 2048 x 4096",
           milliseconds(p,
                        [&] {
                          muon_apply<float, float, D>::forward(
                              p, {matrices, second.as(8, 2048, n / 2048), 1e-3, 0.1, 1}, {});
                        }),
           0, 3 * bytes);
}

}  // namespace

int main() {
  const exec::cuda p;
  const auto c = ceilings::measure(p);
  constexpr auto bf16_products = newton_schulz_products::bf16;
  constexpr auto full = newton_schulz_products::full;
  constexpr auto automatic = newton_schulz_form::automatic, standard = newton_schulz_form::standard,
                 gram = newton_schulz_form::gram;
  struct {
    std::int64_t batch, rows, columns;
    int repeats;
  } const shapes[] = {{1, 2048, 4096, 15}, {1, 1024, 32768, 15}, {16, 2048, 4096, 5}, {256, 2048, 4096, 1},
                      {1, 4096, 2048, 15}, {1, 4096, 4096, 15},  {64, 64, 96, 15}};
  for (const auto& s : shapes) {
    bench_newton_schulz(p, c, s.batch, s.rows, s.columns, bf16_products, automatic, s.repeats);
    const auto chosen = faster_form(s.rows, s.columns, bf16_products, D);
    bench_newton_schulz(p, c, s.batch, s.rows, s.columns, bf16_products, chosen == gram ? standard : gram,
                        s.repeats);
  }
  bench_newton_schulz(p, c, 64, 64, 96, full, standard, 15);
  bench_newton_schulz(p, c, 1, 2048, 4096, full, standard, 3);
  bench_newton_schulz(p, c, 1, 2048, 4096, full, gram, 3);
  bench_updates(p, c, std::int64_t{1} << 26);
}
