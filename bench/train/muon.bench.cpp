// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cpu/muon.hpp>

#include <support/fixtures.hpp>
#include <vector>

namespace {
using namespace dsv4;
using bench::config;

/// The experts of one layer of the 100M configuration, with momentum in storage type M.
template <class M>
void muon_experts(benchmark::State& state, newton_schulz_products products) {
  const std::int64_t count = config.moe.n_routed_experts, rows = config.moe.moe_intermediate_size,
                     columns = config.hidden_size;
  const auto weight = bench::random(count, rows, columns), gradient = bench::random(count, rows, columns);
  const auto momentum = bench::zeros<M>(count, rows, columns);
  std::vector<muon_matrix<float, M>> matrices;
  for (std::int64_t e = 0; e < count; ++e) matrices.push_back({weight.v[e], gradient.v[e], momentum.v[e]});
  muon_options options;
  options.products = products;
  workspace w;
  bench::measure(state, [&] {
    muon<float, M>(bench::policy(), w, std::span<const muon_matrix<float, M>>(matrices), 1e-3, options);
  });
  state.counters["matrices/s"] =
      benchmark::Counter(double(count), benchmark::Counter::kIsIterationInvariantRate);
}
void muon_float(benchmark::State& state) { muon_experts<float>(state, newton_schulz_products::full); }
void muon_bf16(benchmark::State& state) { muon_experts<float>(state, newton_schulz_products::bf16); }
void muon_bf16_momentum(benchmark::State& state) { muon_experts<bf16>(state, newton_schulz_products::bf16); }
BENCHMARK(muon_float)->UseRealTime();
BENCHMARK(muon_bf16)->UseRealTime();
BENCHMARK(muon_bf16_momentum)->UseRealTime();
}  // namespace
