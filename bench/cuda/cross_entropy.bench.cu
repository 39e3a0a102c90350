// SPDX-License-Identifier: Apache-2.0
// The loss of a row of tokens from its last hidden states, and both gradients. The forward pass is one
// product with the head, the backward pass three.
#include <dsv4/ops/cuda/cross_entropy.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

void loss(benchmark::State& state, const model_config& c, bool backward) {
  const std::int64_t rows = state.range(0), width = c.hidden_size, vocabulary = c.vocab_size;
  const auto hidden = bench::random(rows, width), head = bench::random_weight(vocabulary, width),
             dhidden = bench::zeros(rows, width),
             dhead = bench::zeros(backward ? vocabulary : 0, backward ? width : 0);
  const auto targets = bench::random_ids(vocabulary, rows);
  const auto losses = bench::zeros(rows), lse = bench::zeros(rows), dloss = bench::random(rows);
  const cross_entropy<bf16, D>::inputs in{hidden, head, targets};
  device_workspace scratch;
  cross_entropy<bf16, D>::forward(bench::policy(), scratch, in, {losses}, {lse});
  bench::measure(state, [&] {
    if (backward)
      cross_entropy<bf16, D>::backward(bench::policy(), scratch, in, {lse}, {dloss}, {dhidden, dhead});
    else
      cross_entropy<bf16, D>::forward(bench::policy(), scratch, in, {losses}, {lse});
  });
  bench::report_flops(state, (backward ? 6.0 : 2.0) * double(rows) * double(vocabulary) * double(width));
  bench::report_elements(state, (backward ? 3 : 1) * vocabulary * width);
}

const bool added = bench::at_every_size("cross_entropy/forward", {bench::prompt_rows},
                                        [](auto& state, auto& c) { loss(state, c, false); }) &&
                   bench::at_every_size("cross_entropy/backward", {bench::prompt_rows},
                                        [](auto& state, auto& c) { loss(state, c, true); });
}  // namespace
