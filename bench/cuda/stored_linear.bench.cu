// SPDX-License-Identifier: Apache-2.0
// Products with weights as they are stored, FP8 and MXFP4, and inputs in bf16 and FP8. Of few rows, calls
// that follow one another read other weights, or other experts.
#include <dsv4/ops/cuda/linear.cuh>

#include <support/device_experts.cuh>
#include <support/device_formats.cuh>

namespace {
using namespace dsv4;
using bench::D;
using C = const model_config&;

template <class F>
constexpr std::int64_t bytes_of(std::int64_t rows, std::int64_t columns) {
  if constexpr (block_format<F>)
    return F::bytes(rows, columns);
  else
    return rows * columns * static_cast<std::int64_t>(sizeof(F));
}

template <class X>
struct inputs {
  inputs(std::int64_t rows, std::int64_t columns) {
    if constexpr (block_format<X>)
      view = narrow.take(rows, columns);
    else
      wide = bench::random(rows, columns), view = wide;
  }
  bench::random_matrices<fp8_activation> narrow;
  bench::array<bf16, 2> wide;
  storage_matrix<const X, D> view;
};

template <class X>
void report(benchmark::State& state, std::int64_t rows, std::int64_t out, std::int64_t in,
            std::int64_t weight_bytes) {
  bench::report_flops(state, 2.0 * double(rows) * double(out) * double(in));
  bench::report_bytes(state, bytes_of<X>(rows, in) + bytes_of<bf16>(rows, out) + weight_bytes);
}

template <class X>
void linear_fp8(benchmark::State& state, const bench::matrix_shape& s, C c) {
  const std::int64_t rows = state.range(0), out = s.out(c), in = s.in(c);
  const int calls = rows < 100 ? 16 : 1;
  const inputs<X> x(rows, in);
  const auto y = bench::zeros(rows, out);
  bench::random_matrices<fp8_weight> made;
  std::vector<block_scaled_matrix<const fp8_weight, D>> weights;
  for (int i = 0; i < calls; ++i) weights.push_back(made.take(out, in));
  bench::measure_each(state, calls, [&](int i) {
    linear<bf16, D, fp8_weight, X>::forward(bench::policy(), {x.view, weights[std::size_t(i)]}, {y});
  });
  report<X>(state, rows, out, in, fp8_weight::bytes(out, in));
}

struct experts : bench::expert_rows {
  experts(C c, std::int64_t tokens, bool second)
      : expert_rows(c, tokens, second), weight(made.take(count, out, in)) {}
  std::int64_t bytes() const { return used * mxfp4::bytes(out, in); }
  bench::random_matrices<mxfp4> made;
  block_scaled_stack<const mxfp4, D> weight;
};

template <class X>
void grouped_linear_mxfp4(benchmark::State& state, C c, bool second) {
  const experts e(c, state.range(0), second);
  const inputs<X> x(e.pairs, e.in);
  const auto y = bench::zeros(e.pairs, e.out);
  const auto offsets = e.offsets_of_calls();
  bench::measure_each(state, e.calls(), [&](int i) {
    grouped_linear<bf16, D, mxfp4, X>::forward(bench::policy(), {x.view, offsets[std::size_t(i)], e.weight},
                                               {y});
  });
  report<X>(state, e.pairs, e.out, e.in, e.bytes());
}

void grouped_linear_mxfp4_dx(benchmark::State& state, C c, bool second) {
  const experts e(c, state.range(0), second);
  const auto offsets = e.offsets();
  const auto x = bench::random(e.pairs, e.in), dx = bench::zeros(e.pairs, e.in);
  const auto dy = bench::random(e.pairs, e.out);
  device_workspace scratch;
  bench::measure(state, [&] {
    grouped_linear<bf16, D, mxfp4>::backward(bench::policy(), scratch, {x, offsets, e.weight}, {dy},
                                             {dx, {}});
  });
  report<bf16>(state, e.pairs, e.out, e.in, e.bytes());
}

constexpr auto rows = {bench::decode_rows, std::int64_t{8}, bench::prompt_rows};
constexpr auto tokens = {bench::decode_rows, std::int64_t{8}, std::int64_t{64}, bench::prompt_rows};
const bool added = [] {
  const auto products = [](const bench::matrix_shape& s) {
    const std::string op = std::string("linear_") + s.name + "_fp8_x_";
    bench::at_every_size(op + "bf16/forward", rows,
                         [&s](auto& state, C c) { linear_fp8<bf16>(state, s, c); });
    bench::at_every_size(op + "fp8/forward", rows,
                         [&s](auto& state, C c) { linear_fp8<fp8_activation>(state, s, c); });
  };
  for (const bench::matrix_shape& s : bench::matrix_shapes)
    if (s.narrow) products(s);
  products(bench::square_shape);
  for (const bool second : {false, true}) {
    const std::string op = second ? "grouped_linear_w2_mxfp4" : "grouped_linear_w1_mxfp4";
    bench::at_every_size(op + "_x_bf16/forward", tokens,
                         [=](auto& state, C c) { grouped_linear_mxfp4<bf16>(state, c, second); });
    bench::at_every_size(op + "_x_fp8/forward", tokens,
                         [=](auto& state, C c) { grouped_linear_mxfp4<fp8_activation>(state, c, second); });
    bench::at_every_size(op + "_dx/backward", {bench::prompt_rows, 8 * bench::prompt_rows},
                         [=](auto& state, C c) { grouped_linear_mxfp4_dx(state, c, second); });
  }
  return true;
}();
}  // namespace
