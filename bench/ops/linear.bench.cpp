// SPDX-License-Identifier: Apache-2.0
// linear, batched_linear and grouped_linear in float, and Eigen's float product at the shapes of linear.
#include <dsv4/ops/linear.hpp>
#include <dsv4/tensor/eigen.hpp>

#include <algorithm>
#include <support/fixtures.hpp>
#include <support/work.hpp>

namespace {
using namespace dsv4;

using C = const model_config&;

/// `rows` products with `weights` elements of weights, which dominate the bytes of few rows.
void report(benchmark::State& state, std::int64_t rows, std::int64_t out, std::int64_t in,
            std::int64_t weights) {
  bench::report_flops(state, 2.0 * double(rows) * double(out) * double(in));
  bench::report_floats(state, rows * (in + out) + weights, bench::traffic::read);
}

void linear_float(benchmark::State& state, const bench::matrix_shape& s, C c) {
  const std::int64_t rows = state.range(0), out = s.out(c), in = s.in(c);
  if (bench::too_large(state, 4 * out * in)) return;
  const auto x = bench::random(rows, in), weight = bench::random(out, in), y = bench::zeros(rows, out);
  bench::measure(state, [&] { linear<float>::forward(bench::policy(), {x, weight}, {y}); });
  report(state, rows, out, in, out * in);
}

/// dx = dy W and dW += dy^T x.
void linear_float_backward(benchmark::State& state, const bench::matrix_shape& s, C c) {
  const std::int64_t rows = state.range(0), out = s.out(c), in = s.in(c);
  if (bench::too_large(state, 8 * out * in)) return;
  const auto x = bench::random(rows, in), weight = bench::random(out, in), dy = bench::random(rows, out),
             dx = bench::zeros(rows, in), dweight = bench::zeros(out, in);
  workspace scratch;
  bench::measure(state, [&] {
    linear<float>::backward(bench::policy(), scratch, {x, weight}, {dy}, {dx, dweight});
  });
  report(state, 2 * rows, out, in, 3 * out * in);
}

/// On one thread, with the instructions that this program was compiled for (the label); bench_eigen_gemm is
/// the yardstick with all threads and vector instructions.
void eigen_float(benchmark::State& state, const bench::matrix_shape& s, C c) {
  const std::int64_t rows = state.range(0), out = s.out(c), in = s.in(c);
  const auto x = bench::random(rows, in), weight = bench::random(out, in), y = bench::zeros(rows, out);
  const auto ex = as_eigen(x.v), ew = as_eigen(weight.v);
  auto ey = as_eigen(y.v);
  bench::measure(state, [&] { ey.noalias() = ex * ew.transpose(); });
  state.SetLabel(Eigen::SimdInstructionSetsInUse());
  report(state, rows, out, in, out * in);
}

/// The grouped output projection o_a.
void batched_linear_float(benchmark::State& state, C c) {
  const attention_config& a = c.attention;
  const std::int64_t groups = a.o_groups, out = a.o_lora_rank, in = bench::heads_width(c) / groups;
  const std::int64_t rows = state.range(0);
  const auto x = bench::random(rows, groups, in), weight = bench::random(groups, out, in),
             y = bench::zeros(rows, groups, out);
  bench::measure(state, [&] { batched_linear<float>::forward(bench::policy(), {x, weight}, {y}); });
  report(state, rows * groups, out, in, groups * out * in);
}

void batched_linear_backward(benchmark::State& state, C c) {
  const attention_config& a = c.attention;
  const std::int64_t groups = a.o_groups, out = a.o_lora_rank, in = bench::heads_width(c) / groups;
  const std::int64_t rows = state.range(0);
  if (bench::too_large(state, 8 * groups * out * in)) return;
  const auto x = bench::random(rows, groups, in), weight = bench::random(groups, out, in),
             dy = bench::random(rows, groups, out), dx = bench::zeros(rows, groups, in),
             dweight = bench::zeros(groups, out, in);
  workspace scratch;
  bench::measure(state, [&] {
    batched_linear<float>::backward(bench::policy(), scratch, {x, weight}, {dy}, {dx, dweight});
  });
  report(state, 2 * rows * groups, out, in, 3 * groups * out * in);
}

bench::array<std::int64_t, 1> even_offsets(std::int64_t experts, std::int64_t pairs) {
  auto offsets = bench::zeros<std::int64_t>(experts + 1);
  bench::spread_evenly(offsets.v, experts, pairs);
  return offsets;
}

void grouped_linear_backward(benchmark::State& state, C c) {
  const std::int64_t experts = c.moe.n_routed_experts, out = bench::expert_width(c),
                     in = bench::hidden_width(c);
  const std::int64_t pairs = state.range(0) * c.moe.num_experts_per_tok;
  if (bench::too_large(state, 8 * experts * out * in)) return;
  const auto x = bench::random(pairs, in), dy = bench::random(pairs, out), dx = bench::zeros(pairs, in);
  const auto weight = bench::random(experts, out, in), dweight = bench::zeros(experts, out, in);
  const auto offsets = even_offsets(experts, pairs);
  workspace scratch;
  bench::measure(state, [&] {
    grouped_linear<float>::backward(bench::policy(), scratch, {x, offsets, weight}, {dy}, {dx, dweight});
  });
  report(state, 2 * pairs, out, in, 3 * std::min(pairs, experts) * out * in);
}

/// The routed experts' w1.
void grouped_linear_float(benchmark::State& state, C c) {
  const std::int64_t experts = c.moe.n_routed_experts, out = bench::expert_width(c),
                     in = bench::hidden_width(c);
  const std::int64_t pairs = state.range(0) * c.moe.num_experts_per_tok;
  if (bench::too_large(state, 4 * experts * out * in)) return;
  const auto x = bench::random(pairs, in), y = bench::zeros(pairs, out);
  const auto weight = bench::random(experts, out, in);
  const auto offsets = even_offsets(experts, pairs);
  bench::measure(state, [&] { grouped_linear<float>::forward(bench::policy(), {x, offsets, weight}, {y}); });
  report(state, pairs, out, in, std::min(pairs, experts) * out * in);
}

constexpr auto rows = {bench::decode_rows, bench::prefill_rows};
const bool added = [] {
  for (const bench::matrix_shape& s : bench::matrix_shapes) {
    bench::at_every_size(std::string("linear_") + s.name + "/forward", rows,
                         [&s](benchmark::State& state, C c) { linear_float(state, s, c); });
    bench::at_every_size(std::string("linear_") + s.name + "/backward", rows,
                         [&s](benchmark::State& state, C c) { linear_float_backward(state, s, c); });
    bench::at_size(bench::sizes[1], std::string("eigen_") + s.name + "/forward", rows,
                   [&s](benchmark::State& state, C c) { eigen_float(state, s, c); });
  }
  return bench::at_every_size("batched_linear/forward", rows, batched_linear_float) &&
         bench::at_every_size("batched_linear/backward", rows, batched_linear_backward) &&
         bench::at_every_size("grouped_linear/forward", rows, grouped_linear_float) &&
         bench::at_every_size("grouped_linear/backward", rows, grouped_linear_backward);
}();
}  // namespace
