// SPDX-License-Identifier: Apache-2.0
// The loss of a row of tokens from its last hidden states, and both gradients. The forward pass is one
// product with the head, the backward pass three, both at once three where the logits fit in memory, else
// four.
#include <dsv4/ops/cross_entropy.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

enum class pass { forward, backward, both };

void loss(benchmark::State& state, const model_config& c, pass what) {
  const bool backward = what != pass::forward;
  const std::int64_t rows = state.range(0), width = c.hidden_size, vocabulary = c.vocab_size;
  if (bench::too_large(state, 8 * vocabulary * width)) return;
  const auto hidden = bench::random(rows, width), head = bench::random(vocabulary, width),
             dhidden = bench::zeros(rows, width),
             dhead = bench::zeros(backward ? vocabulary : 0, backward ? width : 0);
  const auto targets = bench::random_ids(c.vocab_size, rows);
  const auto losses = bench::zeros(rows), lse = bench::zeros(rows), dloss = bench::random(rows);
  const cross_entropy<float>::inputs in{hidden, head, targets};
  workspace scratch;
  cross_entropy<float>::forward(bench::policy(), scratch, in, {losses}, {lse});
  bench::measure(state, [&] {
    if (what == pass::both)
      cross_entropy<float>::forward_backward(bench::policy(), scratch, in, {losses}, {dloss},
                                             {dhidden, dhead});
    else if (backward)
      cross_entropy<float>::backward(bench::policy(), scratch, in, {lse}, {dloss}, {dhidden, dhead});
    else
      cross_entropy<float>::forward(bench::policy(), scratch, in, {losses}, {lse});
  });
  bench::report_flops(state, (backward ? 6.0 : 2.0) * double(rows) * double(vocabulary) * double(width));
}

const bool added =
    bench::at_every_size("cross_entropy/forward", {bench::prefill_rows},
                         [](benchmark::State& s, const model_config& c) { loss(s, c, pass::forward); }) &&
    bench::at_every_size("cross_entropy/backward", {bench::prefill_rows},
                         [](benchmark::State& s, const model_config& c) { loss(s, c, pass::backward); }) &&
    bench::at_every_size("cross_entropy/forward_backward", {bench::prefill_rows},
                         [](benchmark::State& s, const model_config& c) { loss(s, c, pass::both); });
}  // namespace
