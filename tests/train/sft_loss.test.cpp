// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/sft_loss.hpp>

using namespace dsv4;

TEST_CASE("sft_loss: the mean of -log softmax, and its gradients") {
  // Two rows, two channels, three tokens.
  std::vector<double> hidden{0.5, -1, 2, 0.25}, head{1, 0, 0.5, -0.5, -1, 2};
  const std::vector<std::int32_t> answers{2, 0};
  std::vector<double> dhidden(4, NAN), dhead(6, 1.0);
  workspace w;
  const exec::cpu p(1);
  const auto states = [&](bool gradients) {
    return answer_states<double>{{hidden.data(), 2, 2},
                                 {head.data(), 3, 2},
                                 {answers.data(), 2},
                                 {gradients ? dhidden.data() : nullptr, 2, 2},
                                 {gradients ? dhead.data() : nullptr, 3, 2}};
  };
  const double loss = sft_loss<double>{}(p, w, states(true));
  double want = 0;
  for (std::size_t t = 0; t < 2; ++t) {
    double z[3], sum = 0;
    for (std::size_t v = 0; v < 3; ++v) {
      z[v] = hidden[2 * t] * head[2 * v] + hidden[2 * t + 1] * head[2 * v + 1];
      sum += std::exp(z[v]);
    }
    want += (std::log(sum) - z[answers[t]]) / 2;
  }
  CHECK(loss == Catch::Approx(want).epsilon(1e-14));
  for (double& g : dhead) g -= 1;  // added to what was there
  std::vector<grad_check_argument> arguments{{"hidden", hidden, dhidden}, {"head", head, dhead}};
  const auto worst = grad_check([&] { return sft_loss<double>{}(p, w, states(false)); },
                                std::span<const grad_check_argument>(arguments));
  INFO(worst.text());
  CHECK(worst.checked == 10);
  CHECK(worst.error < 1e-9);
}
