// SPDX-License-Identifier: Apache-2.0
// The attention sublayer of each kind in bf16: a prompt, and one token after a long context.
#include <dsv4/blocks/attention.hpp>
#include <dsv4/cuda.cuh>

#include <support/device_weights.cuh>
#include <support/work.hpp>

namespace {
using namespace dsv4;
using bench::D;

template <model_config C, attention_kind K>
void attend(benchmark::State& state, std::int64_t first, std::int64_t rows) {
  constexpr numerics_config Q = numerics::float32;
  const bench::random_weights<bench::attention_layer<C, K>, Q> weights;
  const auto x = bench::random(rows, C.hidden_size), y = bench::zeros(rows, C.hidden_size);
  attention_cache<bf16, D> cache(C.attention, K, 0);
  cache.reserve(bench::policy(), first + rows, 0);
  device_workspace scratch;
  const attention_segment<bf16, D> segment{&cache, first, 0, rows};
  bench::measure(state, [&] {  // the cache holds positions, not a length: the same step can be repeated
    attention<C.attention, Q, bf16, D>(bench::policy(), scratch, weights.layer().attention, C.rms_norm_eps,
                                       std::span(&segment, 1), x, y.v);
  });
  bench::report_flops(state, bench::attention_flops(C, K, first, rows));
  bench::report_elements(state, std::int64_t(bench::attention_weights(C, K)) + 2 * rows * C.hidden_size);
  state.counters["workspace MB"] = double(scratch.high_water()) * 1e-6;
}

template <attention_kind K>
bool add(const std::string& name) {
  bench::at_device_sizes(name + "/forward", {bench::prompt_rows}, [](benchmark::State& state, auto of) {
    attend<of.config, K>(state, 0, state.range(0));
  });
  bench::at_device_sizes(
      name + "/decode", {65536, 1000000},
      [](benchmark::State& state, auto of) { attend<of.config, K>(state, state.range(0), 1); }, "context");
  return true;
}
const bool added[] = {add<attention_kind::sliding>("attention_sliding"),
                      add<attention_kind::csa>("attention_csa"), add<attention_kind::hca>("attention_hca")};
}  // namespace
