// SPDX-License-Identifier: Apache-2.0
// The passes over all elements before and after Newton-Schulz, at the experts' matrices.
#include <dsv4/train/cuda/muon.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

constexpr std::int64_t count = 8;

void pass(benchmark::State& state, const model_config& c, bool momentum) {
  const std::int64_t rows = c.moe.moe_intermediate_size, columns = c.hidden_size;
  const auto weight = bench::random<float>(count, rows, columns),
             gradient = bench::random<float>(count, rows, columns),
             kept = bench::random<float>(count, rows, columns),
             u = bench::random<float>(count, rows, columns);
  std::vector<muon_matrix<float, float, D>> matrices;
  for (std::int64_t i = 0; i < count; ++i) matrices.push_back({weight.v[i], gradient.v[i], kept.v[i]});
  bench::measure(state, [&] {
    if (momentum)
      muon_momentum<float, float, D>::forward(bench::policy(), {matrices, 0.95, true, 1}, {u});
    else
      muon_apply<float, float, D>::forward(bench::policy(), {matrices, u, 1e-3, 0.1, 1}, {});
  });
  bench::report_elements<float>(state, (momentum ? 4 : 3) * u.v.size());
}

const bool added = [] {
  for (const bench::size& s : bench::sizes)
    for (const bool momentum : {true, false})
      bench::add(std::string(momentum ? "muon_momentum" : "muon_apply") + "/forward/" + s.name,
                 [&s, momentum](benchmark::State& state) { pass(state, s.config, momentum); });
  return true;
}();
}  // namespace
