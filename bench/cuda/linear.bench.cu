// SPDX-License-Identifier: Apache-2.0
// linear, batched_linear and grouped_linear in bf16, and the library's own products where linear asks
// cuBLASLt. Of few rows, calls that follow one another read other weights, or other experts.
#include <dsv4/ops/cuda/linear.cuh>

#include <support/device_experts.cuh>

namespace {
using namespace dsv4;
using bench::D;
using C = const model_config&;

/// `rows` products with `weights` elements of weights, each of which is read or written once.
void report(benchmark::State& state, std::int64_t rows, std::int64_t out, std::int64_t in,
            std::int64_t weights) {
  bench::report_flops(state, 2.0 * double(rows) * double(out) * double(in));
  bench::report_elements(state, rows * (in + out) + weights);
}

void linear_bf16(benchmark::State& state, const bench::matrix_shape& s, C c, bool own) {
  const std::int64_t rows = state.range(0), out = s.out(c), in = s.in(c);
  const int calls = rows < 100 && out * in < (1 << 27) ? 16 : 1;
  const auto x = bench::random(rows, in), y = bench::zeros(rows, out);
  const auto weights = bench::random_weight(calls, out, in);
  const tensor_view<const bf16, D> all = weights;
  bench::measure_each(state, calls, [&](int i) {
    if (own) {
      const detail::gemm_problem<bf16, matrix_view<const bf16, D>, matrix_view<const bf16, D>> m{
          x, all[i], y, nullptr, 0, 0, 1};
      expect(detail::launch_gemv(bench::policy(), "linear", m) ||
                 detail::launch_gemm_sm90(bench::policy(), "linear", m),
             "own product", "GPU", "Hopper", bench::policy().device().major);
    } else {
      linear<bf16, D>::forward(bench::policy(), {x, all[i]}, {y});
    }
  });
  report(state, rows, out, in, out * in);
}

/// dx = dy W and dW += dy^T x.
void linear_backward(benchmark::State& state, const bench::matrix_shape& s, C c) {
  const std::int64_t rows = state.range(0), out = s.out(c), in = s.in(c);
  const auto x = bench::random(rows, in), weight = bench::random_weight(out, in),
             dy = bench::random(rows, out), dx = bench::zeros(rows, in), dweight = bench::zeros(out, in);
  device_workspace scratch;
  bench::measure(state, [&] {
    linear<bf16, D>::backward(bench::policy(), scratch, {x, weight}, {dy}, {dx, dweight});
  });
  report(state, 2 * rows, out, in, 3 * out * in);
}

/// The grouped output projection o_a.
void batched_linear_bf16(benchmark::State& state, C c) {
  const attention_config& a = c.attention;
  const std::int64_t groups = a.o_groups, out = a.o_lora_rank, in = bench::heads_width(c) / groups,
                     rows = state.range(0);
  const auto x = bench::random(rows, groups, in), weight = bench::random_weight(groups, out, in),
             y = bench::zeros(rows, groups, out);
  bench::measure(state, [&] { batched_linear<bf16, D>::forward(bench::policy(), {x, weight}, {y}); });
  report(state, rows * groups, out, in, groups * out * in);
}

struct experts : bench::expert_rows {
  experts(C c, std::int64_t tokens, bool second)
      : expert_rows(c, tokens, second),
        x(bench::random(pairs, in)),
        y(bench::random(pairs, out)),
        weight(bench::random_weight(count, out, in)) {}
  bench::array<bf16, 2> x, y;
  bench::array<bf16, 3> weight;
};

void grouped_linear_bf16(benchmark::State& state, C c, bool second) {
  const experts e(c, state.range(0), second);
  const auto offsets = e.offsets_of_calls();
  bench::measure_each(state, e.calls(), [&](int i) {
    grouped_linear<bf16, D>::forward(bench::policy(), {e.x, offsets[std::size_t(i)], e.weight}, {e.y});
  });
  report(state, e.pairs, e.out, e.in, e.used * e.out * e.in);
}

void grouped_linear_dx(benchmark::State& state, C c, bool second, bool add) {
  const experts e(c, state.range(0), second);
  const auto offsets = e.offsets();
  device_workspace scratch;
  bench::measure(state, [&] {
    grouped_linear<bf16, D>::backward(bench::policy(), scratch, {e.x, offsets, e.weight}, {e.y},
                                      {e.x, {}, add});
  });
  report(state, e.pairs, e.out, e.in, e.used * e.out * e.in + (add ? e.pairs * e.in : 0));
}

void grouped_linear_dweight(benchmark::State& state, C c, bool second) {
  const experts e(c, state.range(0), second);
  const auto offsets = e.offsets();
  const auto dweight = bench::random(e.count, e.out, e.in);
  device_workspace scratch;
  bench::measure(state, [&] {
    grouped_linear<bf16, D>::backward(bench::policy(), scratch, {e.x, offsets, e.weight}, {e.y},
                                      {{}, dweight});
  });
  report(state, e.pairs, e.out, e.in, 2 * e.used * e.out * e.in);
}

constexpr auto rows = {bench::decode_rows, std::int64_t{8}, bench::prompt_rows};
constexpr auto tokens = {bench::decode_rows, std::int64_t{8}, std::int64_t{64}, bench::prompt_rows};
constexpr auto many_tokens = {bench::prompt_rows, 8 * bench::prompt_rows};
const bool added = [] {
  const auto products = [](const bench::matrix_shape& s) {
    bench::at_every_size(std::string("linear_") + s.name + "/forward", rows,
                         [&s](benchmark::State& state, C c) { linear_bf16(state, s, c, false); });
    bench::at_every_size(std::string("linear_") + s.name + "/backward", {bench::prompt_rows},
                         [&s](benchmark::State& state, C c) { linear_backward(state, s, c); });
    bench::at_size(bench::sizes[2], std::string("own_") + s.name + "/forward", rows,
                   [&s](benchmark::State& state, C c) { linear_bf16(state, s, c, true); });
  };
  for (const bench::matrix_shape& s : bench::matrix_shapes) products(s);
  products(bench::square_shape);
  bench::at_every_size("batched_linear/forward", {bench::decode_rows, bench::prompt_rows},
                       batched_linear_bf16);
  for (const bool second : {false, true}) {
    const std::string op = second ? "grouped_linear_w2" : "grouped_linear_w1";
    bench::at_every_size(op + "/forward", tokens,
                         [=](auto& state, C c) { grouped_linear_bf16(state, c, second); });
    bench::at_every_size(op + "_dx/backward", many_tokens,
                         [=](auto& state, C c) { grouped_linear_dx(state, c, second, false); });
    bench::at_every_size(op + "_dx_added/backward", many_tokens,
                         [=](auto& state, C c) { grouped_linear_dx(state, c, second, true); });
    bench::at_every_size(op + "_dweight/backward", many_tokens,
                         [=](auto& state, C c) { grouped_linear_dweight(state, c, second); });
  }
  return true;
}();
}  // namespace
