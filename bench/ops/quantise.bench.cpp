// SPDX-License-Identifier: Apache-2.0
// To a block-scaled format, back, and both at once, at the widths that the model stores.
#include <dsv4/cpu.hpp>
#include <dsv4/ops/quantise.hpp>

#include <cstdint>
#include <support/fixtures.hpp>
#include <vector>

namespace {
using namespace dsv4;

/// A random matrix and its room in format F.
template <block_format F>
struct operands {
  bench::array<float, 2> x;
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;

  operands(std::int64_t rows, std::int64_t width)
      : x(bench::random(rows, width)),
        codes(static_cast<std::size_t>(rows * F::row_bytes(width))),
        scales(static_cast<std::size_t>(F::scale_rows(rows) * F::scale_columns(width))) {}
  block_scaled_matrix<F> view() { return {codes.data(), scales.data(), x.v.extent[0], x.v.extent[1]}; }
  std::int64_t bytes() const {
    return x.v.size() * std::int64_t{sizeof(float)} + F::bytes(x.v.extent[0], x.v.extent[1]);
  }
};

template <block_format F, std::int64_t width>
void to(benchmark::State& state) {
  operands<F> of(state.range(0), width);
  bench::measure(state, [&] { quantise<F, float>::forward(bench::policy(), {of.x}, {of.view()}); });
  state.SetBytesProcessed(state.iterations() * of.bytes());
}

template <block_format F, std::int64_t width>
void from(benchmark::State& state) {
  operands<F> of(state.range(0), width);
  quantise<F, float>::forward(bench::policy(), {of.x}, {of.view()});
  bench::measure(state, [&] { dequantise<F, float>::forward(bench::policy(), {of.view()}, {of.x}); });
  state.SetBytesProcessed(state.iterations() * of.bytes());
}

template <block_format F, std::int64_t width>
void there_and_back(benchmark::State& state) {
  const auto x = bench::random(state.range(0), width);
  bench::measure(state, [&] { round_trip<F, float>::forward(bench::policy(), {}, {x}); });
  bench::report_floats(state, 2 * x.v.size());
}

constexpr std::int64_t hidden = bench::config.hidden_size, head = bench::config.attention.head_dim,
                       index = bench::config.attention.index_head_dim;
BENCHMARK(to<fp8_activation, hidden>)->Apply(bench::decode_and_prefill);
BENCHMARK(to<fp8_weight, hidden>)->Apply(bench::decode_and_prefill);
BENCHMARK(to<mxfp4, hidden>)->Apply(bench::decode_and_prefill);
BENCHMARK(from<fp8_activation, hidden>)->Apply(bench::decode_and_prefill);
BENCHMARK(from<fp8_weight, hidden>)->Apply(bench::decode_and_prefill);
BENCHMARK(from<mxfp4, hidden>)->Apply(bench::decode_and_prefill);
BENCHMARK(there_and_back<fp8_kv, head>)->Apply(bench::decode_and_prefill);
BENCHMARK(there_and_back<mxfp4, index>)->Apply(bench::decode_and_prefill);
}  // namespace
