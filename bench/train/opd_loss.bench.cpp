// SPDX-License-Identifier: Apache-2.0
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu/opd_loss.hpp>

#include <support/fixtures.hpp>
#include <vector>

namespace {
using namespace dsv4;
using bench::config;

/// 64 tokens, the vocabulary and width of the 100M configuration, a number of teachers; loss and gradients.
void opd_loss_tokens(benchmark::State& state) {
  const std::int64_t rows = 64, width = config.hidden_size, vocabulary = config.vocab_size,
                     count = state.range(0);
  const auto hidden = bench::random(rows, width), head = bench::random(vocabulary, width);
  const auto teacher_hidden = bench::random(count, rows, width);
  const auto weights = bench::random(count, rows);
  std::vector<opd_teacher<float>> teachers;
  for (std::int64_t i = 0; i < count; ++i) teachers.push_back({teacher_hidden.v[i], head.v, weights.v[i]});
  const auto losses = bench::zeros(rows);
  const auto dhidden = bench::zeros(rows, width), dhead = bench::zeros(vocabulary, width);
  workspace w;
  bench::measure(state, [&] {
    opd_loss<float>::forward(bench::policy(), w, {hidden.v, head.v, teachers},
                             {losses.v, dhidden.v, dhead.v});
  });
  // Logits of everybody twice, and two products for the gradients.
  bench::report_flops(state, 2.0 * double(rows * width * vocabulary) * double(2 * (count + 1) + 2));
}
BENCHMARK(opd_loss_tokens)->ArgName("teachers")->Arg(1)->Arg(4)->UseRealTime();
}  // namespace
