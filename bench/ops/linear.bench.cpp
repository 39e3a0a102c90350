// SPDX-License-Identifier: Apache-2.0
// linear, batched_linear and grouped_linear, and Eigen's float product at the shapes of linear.
#include <dsv4/ops/linear.hpp>
#include <dsv4/tensor/eigen.hpp>

#include <algorithm>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;

void shapes(benchmark::internal::Benchmark* b) {
  constexpr std::int64_t d = config.hidden_size, n = config.hyper_connection.hc_mult;
  constexpr std::int64_t q = config.attention.q_lora_rank, dim = config.attention.head_dim;
  constexpr std::int64_t heads_dim = config.attention.num_attention_heads * dim;
  constexpr std::int64_t inner = config.moe.moe_intermediate_size;
  b->ArgNames({"N", "O", "I"})->UseRealTime();
  for (const std::int64_t rows : {bench::decode_rows, bench::prefill_rows}) {
    b->Args({rows, q, d});                                    // q_a
    b->Args({rows, heads_dim, q});                            // q_b
    b->Args({rows, dim, d});                                  // kv
    b->Args({rows, d, d});                                    // o_b
    b->Args({rows, inner, d});                                // shared_w1
    b->Args({rows, d, inner});                                // shared_w2
    b->Args({rows, config.hyper_connection.mixes(), n * d});  // mHC mixer
    b->Args({rows, config.vocab_size, d});                    // head
  }
}

void report(benchmark::State& state, std::int64_t rows, std::int64_t out, std::int64_t in,
            std::int64_t weights) {
  bench::report_flops(state, 2.0 * double(rows) * double(out) * double(in));
  bench::report_floats(state, rows * (in + out) + weights);
}

void linear_float(benchmark::State& state) {
  const std::int64_t rows = state.range(0), out = state.range(1), in = state.range(2);
  const auto x = bench::random(rows, in), weight = bench::random(out, in), y = bench::zeros(rows, out);
  bench::measure(state, [&] { linear<float>::forward(bench::policy(), {x, weight}, {y}); });
  report(state, rows, out, in, out * in);
}
BENCHMARK(linear_float)->Apply(shapes);

/// On one thread, with the instructions that this program was compiled for (the label); bench_eigen_gemm is
/// the yardstick with all threads and vector instructions.
void eigen_float(benchmark::State& state) {
  const std::int64_t rows = state.range(0), out = state.range(1), in = state.range(2);
  const auto x = bench::random(rows, in), weight = bench::random(out, in), y = bench::zeros(rows, out);
  const auto ex = as_eigen(x.v), ew = as_eigen(weight.v);
  auto ey = as_eigen(y.v);
  bench::measure(state, [&] { ey.noalias() = ex * ew.transpose(); });
  state.SetLabel(Eigen::SimdInstructionSetsInUse());
  report(state, rows, out, in, out * in);
}
BENCHMARK(eigen_float)->Apply(shapes);

/// The grouped output projection o_a.
void batched_linear_float(benchmark::State& state) {
  constexpr attention_config a = config.attention;
  constexpr std::int64_t groups = a.o_groups, out = a.o_lora_rank,
                         in = a.num_attention_heads * a.head_dim / groups;
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, groups, in), weight = bench::random(groups, out, in),
             y = bench::zeros(rows, groups, out);
  bench::measure(state, [&] { batched_linear<float>::forward(bench::policy(), {x, weight}, {y}); });
  report(state, rows * groups, out, in, groups * out * in);
}
BENCHMARK(batched_linear_float)->Apply(bench::decode_and_prefill);

/// The routed experts' w1, tokens spread evenly; in decode the first k experts have a row each.
void grouped_linear_float(benchmark::State& state) {
  constexpr std::int64_t experts = config.moe.n_routed_experts, out = config.moe.moe_intermediate_size,
                         in = config.hidden_size;
  const std::int64_t pairs = state.range(0) * config.moe.num_experts_per_tok;
  const auto x = bench::random(pairs, in), y = bench::zeros(pairs, out);
  const auto weight = bench::random(experts, out, in);
  const auto offsets = bench::zeros<std::int64_t>(experts + 1);
  for (std::int64_t e = 0; e <= experts; ++e)
    offsets.v(e) = pairs < experts ? std::min(e, pairs) : pairs * e / experts;
  bench::measure(state, [&] { grouped_linear<float>::forward(bench::policy(), {x, offsets, weight}, {y}); });
  report(state, pairs, out, in, std::min(pairs, experts) * out * in);
}
BENCHMARK(grouped_linear_float)->Apply(bench::decode_and_prefill);
}  // namespace
