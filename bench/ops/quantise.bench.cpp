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

template <block_format F>
void to(benchmark::State& state, const model_config& c) {
  operands<F> of(state.range(0), c.hidden_size);
  bench::measure(state, [&] { quantise<F, float>::forward(bench::policy(), {of.x}, {of.view()}); });
  bench::report_bytes(state, of.bytes());
}

template <block_format F>
void from(benchmark::State& state, const model_config& c) {
  operands<F> of(state.range(0), c.hidden_size);
  quantise<F, float>::forward(bench::policy(), {of.x}, {of.view()});
  bench::measure(state, [&] { dequantise<F, float>::forward(bench::policy(), {of.view()}, {of.x}); });
  bench::report_bytes(state, of.bytes());
}

template <block_format F>
void there_and_back(benchmark::State& state, std::int64_t rows, std::int64_t width) {
  const auto x = bench::random(rows, width);
  bench::measure(state, [&] { round_trip<F, float>::forward(bench::policy(), {}, {x}); });
  bench::report_floats(state, 2 * x.v.size());
}

constexpr auto rows = {bench::decode_rows, bench::prefill_rows};
const bool added[] = {
    bench::at_every_size("quantise_fp8_activation/forward", rows, to<fp8_activation>),
    bench::at_every_size("quantise_fp8_weight/forward", rows, to<fp8_weight>),
    bench::at_every_size("quantise_mxfp4/forward", rows, to<mxfp4>),
    bench::at_every_size("dequantise_fp8_activation/forward", rows, from<fp8_activation>),
    bench::at_every_size("dequantise_fp8_weight/forward", rows, from<fp8_weight>),
    bench::at_every_size("dequantise_mxfp4/forward", rows, from<mxfp4>),
    bench::at_every_size("round_trip_fp8_kv/forward", rows,
                         [](benchmark::State& state, const model_config& c) {
                           there_and_back<fp8_kv>(state, state.range(0),
                                                  c.attention.head_dim - c.attention.qk_rope_head_dim);
                         }),
    bench::at_every_size("round_trip_mxfp4_index/forward", rows,
                         [](benchmark::State& state, const model_config& c) {
                           there_and_back<mxfp4>(state, state.range(0) * c.attention.index_n_heads,
                                                 c.attention.index_head_dim);
                         })};
}  // namespace
