// SPDX-License-Identifier: Apache-2.0
// To a block-scaled format, back, and both at once, at the widths that the model stores.
#include <dsv4/ops/cuda/quantise.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

/// A random matrix and its room in format F.
template <block_format F>
struct operands {
  bench::array<bf16, 2> x;
  device_buffer<std::uint8_t> codes;
  device_buffer<e8m0> scales;

  operands(std::int64_t rows, std::int64_t width)
      : x(bench::random(rows, width)),
        codes(rows * F::row_bytes(width)),
        scales(F::scale_rows(rows) * F::scale_columns(width)) {}
  block_scaled_matrix<F, D> view() { return {codes.data(), scales.data(), x.v.extent[0], x.v.extent[1]}; }
  std::int64_t bytes() const {
    return x.v.size() * std::int64_t{sizeof(bf16)} + F::bytes(x.v.extent[0], x.v.extent[1]);
  }
};

template <block_format F>
void to(benchmark::State& state, const model_config& c) {
  operands<F> of(state.range(0), c.hidden_size);
  bench::measure(state, [&] { quantise<F, bf16, D>::forward(bench::policy(), {of.x}, {of.view()}); });
  bench::report_bytes(state, of.bytes());
}

template <block_format F>
void from(benchmark::State& state, const model_config& c) {
  operands<F> of(state.range(0), c.hidden_size);
  quantise<F, bf16, D>::forward(bench::policy(), {of.x}, {of.view()});
  bench::measure(state, [&] { dequantise<F, bf16, D>::forward(bench::policy(), {of.view()}, {of.x}); });
  bench::report_bytes(state, of.bytes());
}

template <block_format F>
void there_and_back(benchmark::State& state, std::int64_t rows, std::int64_t width) {
  const auto x = bench::random(rows, width);
  bench::measure(state, [&] { round_trip<F, bf16, D>::forward(bench::policy(), {}, {x}); });
  bench::report_elements(state, 2 * x.v.size());
}

constexpr auto rows = {bench::decode_rows, bench::prompt_rows};
const bool added[] = {
    bench::at_every_size("quantise_fp8_activation/forward", rows, to<fp8_activation>),
    bench::at_every_size("quantise_fp8_weight/forward", {bench::prompt_rows}, to<fp8_weight>),
    bench::at_every_size("quantise_mxfp4/forward", {bench::prompt_rows}, to<mxfp4>),
    bench::at_every_size("dequantise_fp8_activation/forward", {bench::prompt_rows}, from<fp8_activation>),
    bench::at_every_size("dequantise_fp8_weight/forward", {bench::prompt_rows}, from<fp8_weight>),
    bench::at_every_size("dequantise_mxfp4/forward", {bench::prompt_rows}, from<mxfp4>),
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
