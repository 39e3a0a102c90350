// SPDX-License-Identifier: Apache-2.0
// Tokens' loss against teachers, with gradients, in float; the time is a whole call's, which waits for the
// loss.
#include <dsv4/exec/cuda_transfer.cuh>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/train/cuda/opd_loss.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

void loss(benchmark::State& state, const model_config& c) {
  const std::int64_t rows = 512, width = c.hidden_size, vocabulary = c.vocab_size, count = state.range(0);
  const auto hidden = bench::random<float>(rows, width),
             head = bench::random_weight<float>(vocabulary, width),
             dhidden = bench::zeros<float>(rows, width), dhead = bench::zeros<float>(vocabulary, width),
             weights = bench::random<float>(count, rows);
  const auto teacher_hidden = bench::random<float>(count, rows, width);
  const auto losses = bench::zeros<float>(rows);
  std::vector<opd_teacher<float, D>> teachers;
  for (std::int64_t i = 0; i < count; ++i) teachers.push_back({teacher_hidden.v[i], head, weights.v[i]});
  device_workspace scratch;
  bench::measure_waiting(state, [&] {
    opd_loss<float, D>::forward(bench::policy(), scratch, {hidden, head, teachers}, {losses, dhidden, dhead});
  });
  // Logits of everybody twice, and two products for the gradients.
  bench::report_flops(state, 2.0 * double(rows * width * vocabulary) * double(2 * (count + 1) + 2));
}

const bool added = [] {
  for (const bench::size& s : bench::sizes)
    bench::add(std::string("opd_loss/forward/") + s.name,
               [&s](benchmark::State& state) { loss(state, s.config); })
        ->ArgName("teachers")
        ->Arg(1)
        ->Arg(4);
  return true;
}();
}  // namespace
