// SPDX-License-Identifier: Apache-2.0
// The mixture of experts with learned routing. V4-Flash and V4-Pro in the released formats.
#include <dsv4/blocks/moe.hpp>

#include <algorithm>
#include <support/weights.hpp>
#include <support/work.hpp>

namespace {
using namespace dsv4;

const bool added = bench::at_every_compiled_size(
    "moe/forward", {bench::decode_rows, 64}, []<model_config C>(benchmark::State& state) {
      constexpr numerics_config Q = bench::formats_of<C>;
      constexpr moe_config m = C.moe;
      constexpr std::int64_t width = C.hidden_size;
      using weights_type = bench::random_weights<bench::one_layer<C, attention_kind::sliding>, Q>;
      const weights_type weights;
      const auto& ffn = weights.layer().ffn;
      workspace scratch;
      const std::int64_t rows = state.range(0);
      const auto x = bench::random(rows, width), y = bench::zeros(rows, width);
      const auto run = [&] { moe<m, Q, float, space::host>(bench::policy(), scratch, ffn, {}, x, y); };
      run();
      bench::measure(state, run);
      bench::report_flops(state, bench::moe_flops(C, rows));
      const auto expert = weights_type::bytes(ffn.experts.w1[0]) + weights_type::bytes(ffn.experts.w2[0]) +
                          weights_type::bytes(ffn.experts.w3[0]);
      bench::report_bytes(state,
                          static_cast<std::int64_t>(bench::experts_read(m, rows) * double(expert)) +
                              weights_type::bytes(ffn.shared_w1) + weights_type::bytes(ffn.shared_w2) +
                              weights_type::bytes(ffn.shared_w3) + weights_type::bytes(ffn.gate),
                          bench::traffic::read);
      bench::report_rows(state, rows);
    });
}  // namespace
