// SPDX-License-Identifier: Apache-2.0
// Newton-Schulz of ten steps, in the form that is chosen and in the other.
#include <dsv4/train/cuda/newton_schulz.cuh>

#include <algorithm>
#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

/// FLOP/s are nominal: 2 (2 n^2 m + n^3) a step, as if no product were symmetric.
void iterate(benchmark::State& state, newton_schulz_products products, newton_schulz_form form) {
  const std::int64_t batch = state.range(0), rows = state.range(1), columns = state.range(2);
  const auto x = bench::random<float>(batch, rows, columns), y = bench::zeros<float>(batch, rows, columns);
  device_workspace scratch;
  bench::measure(state, [&] {
    newton_schulz<float, D>::forward(bench::policy(), scratch, {.x = x, .form = form, .products = products},
                                     {y});
  });
  const double n = double(std::min(rows, columns)), m = double(std::max(rows, columns));
  bench::report_flops(state, double(batch) * 10 * (4 * n * n * m + 2 * n * n * n));
}

/// Batch, rows, columns: V4-Flash's experts and projections, and a batch of the nano configuration.
using shapes = std::vector<std::vector<std::int64_t>>;
const shapes all = {{1, 2048, 4096}, {1, 1024, 32768}, {16, 2048, 4096}, {256, 2048, 4096},
                    {1, 4096, 2048}, {1, 4096, 4096},  {64, 64, 96}};
const shapes in_float = {{64, 64, 96}, {1, 2048, 4096}};

const bool added = [] {
  constexpr auto bf16_products = newton_schulz_products::bf16, full = newton_schulz_products::full;
  constexpr auto standard = newton_schulz_form::standard, gram = newton_schulz_form::gram;
  const auto add = [](const std::string& name, auto products, auto form, const shapes& of) {
    auto* b = bench::add(name + "/forward", [=](benchmark::State& state) { iterate(state, products, form); });
    b->ArgNames({"batch", "rows", "columns"});
    for (const auto& shape : of) b->Args(shape);
  };
  const auto others = [&](newton_schulz_form form) {  // shapes for which another form is chosen
    shapes some;
    for (const auto& s : all)
      if (faster_form(s[1], s[2], bf16_products, D) != form) some.push_back(s);
    return some;
  };
  add("newton_schulz_bf16", bf16_products, newton_schulz_form::automatic, all);
  add("newton_schulz_bf16_standard", bf16_products, standard, others(standard));
  add("newton_schulz_bf16_gram", bf16_products, gram, others(gram));
  add("newton_schulz_float_standard", full, standard, in_float);
  add("newton_schulz_float_gram", full, gram, in_float);
  return true;
}();
}  // namespace
