// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/train/grpo_loss.hpp>

#include <cmath>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
struct problem {
  std::vector<double> logp, old, reference, advantages;
  std::vector<std::int64_t> offsets;
  grpo_options options;

  grpo_loss<double>::result run(std::vector<double>& dlogp) const {
    const auto n = static_cast<std::int64_t>(logp.size());
    dlogp.assign(logp.size(), NAN);
    return grpo_loss<double>::forward({{logp.data(), n},
                                       {old.data(), n},
                                       {reference.data(), static_cast<std::int64_t>(reference.size())},
                                       {offsets.data(), static_cast<std::int64_t>(offsets.size())},
                                       {advantages.data(), static_cast<std::int64_t>(advantages.size())},
                                       options},
                                      {{dlogp.data(), n}});
  }
};
}  // namespace

TEST_CASE("grpo_loss: advantages within groups") {
  const double rewards[] = {1, 0, 0, 1, 1, 1};
  double a[6];
  group_advantages({rewards, 6}, 3, {a, 6});
  CHECK(a[0] == Catch::Approx(2.0 / 3));
  CHECK(a[1] == Catch::Approx(-1.0 / 3));
  for (int i = 3; i < 6; ++i) CHECK(a[i] == 0);  // nothing to learn from equal rewards; no division by zero
  CHECK_THROWS_WITH(group_advantages({rewards, 6}, 4, {a, 6}),
                    contains("group_advantages: group: expected a divisor of 6, found 4"));
}

TEST_CASE("grpo_loss: on policy, the gradient is the policy gradient") {
  const problem p{{-1, -2, -0.5}, {-1, -2, -0.5}, {-1, -2, -0.5}, {0.5, -0.25}, {0, 2, 3}, {}};
  std::vector<double> d;
  const auto r = p.run(d);
  CHECK(r.loss == Catch::Approx(-(0.5 - 0.25) / 2));  // ratios are 1
  CHECK(r.mean_kl == 0);
  CHECK(r.clipped_share == 0);
  CHECK(d[0] == Catch::Approx(-0.5 / 2 / 2));
  CHECK(d[1] == Catch::Approx(-0.5 / 2 / 2));
  CHECK(d[2] == Catch::Approx(0.25 / 2));
}

TEST_CASE("grpo_loss: which side of the clip has a gradient") {
  // Ratios 1.5 and 0.5 with advantages of both signs: only steps that would go further out are stopped.
  problem p{{std::log(1.5), std::log(0.5), std::log(1.5), std::log(0.5)},
            {0, 0, 0, 0},
            {},
            {1, 1, -1, -1},
            {0, 1, 2, 3, 4},
            {.kl_weight = 0, .off_policy_limit = 10}};
  std::vector<double> d;
  const auto r = p.run(d);
  CHECK(d[0] == 0);
  CHECK(d[1] == Catch::Approx(-0.5 / 4));
  CHECK(d[2] == Catch::Approx(1.5 / 4));
  CHECK(d[3] == 0);
  CHECK(r.clipped_share == 0.5);
  CHECK(r.loss == Catch::Approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4));
}

TEST_CASE("grpo_loss: answers that went off policy and did badly are left out") {
  problem p{{-3, -3, -3, -3}, {-1, -1, -1, -1}, {-3, -3, -3, -3},
            {-1, 1},          {0, 2, 4},        {.clip_below = 0.9, .off_policy_limit = 1}};
  std::vector<double> d;
  CHECK(p.run(d).masked == 1);
  CHECK(d[0] == 0);
  CHECK(d[2] < 0);                 // a positive advantage is kept, however far
  p.options.off_policy_limit = 2;  // exactly the drift: not above
  CHECK(p.run(d).masked == 0);
  CHECK(d[0] > 0);
}

TEST_CASE("grpo_loss: the gradient is that of the loss, by differences") {
  problem p;
  const auto a = random<double>(12, 1, 1), b = random<double>(12, 2, 0.5), c = random<double>(12, 3, 0.5);
  for (std::int64_t i = 0; i < 12; ++i) {
    p.logp.push_back(-1 + a[i]), p.old.push_back(-1 + b[i]), p.reference.push_back(-1 + c[i]);
  }
  p.logp[3] = p.old[3] + 0.5;  // clipped
  p.advantages = {0.5, -0.75, 0.25, 0};
  p.offsets = {0, 5, 6, 6, 11};  // one answer is empty; the last token belongs to none
  p.options = {.clip_below = 0.2, .clip_above = 0.3, .kl_weight = 0.2, .off_policy_limit = 0.4};
  std::vector<double> d, unused;
  const auto r = p.run(d);
  CHECK(r.clipped_share > 0);
  CHECK(r.mean_kl > 0);
  CHECK(d[11] == 0);
  for (std::size_t i = 0; i < 12; ++i) {
    const double at = p.logp[i], h = 1e-6;
    p.logp[i] = at + h;
    const double above = p.run(unused).loss;
    p.logp[i] = at - h;
    const double below = p.run(unused).loss;
    p.logp[i] = at;
    CHECK(std::abs(d[i] - (above - below) / (2 * h)) < 1e-9);  // no ratio lies within h of a border
  }
}

TEST_CASE("grpo_loss: the KL term's expected gradient is that of the exact KL") {
  // Over the policy that samples (old = now): E[(log pi - log ref) d log pi].
  const std::vector<double> z{0.3, -1, 0.8}, ref{-0.2, 0.5, 0.1};
  const auto log_softmax = [](std::vector<double> v) {
    double sum = 0;
    for (double x : v) sum += std::exp(x);
    for (double& x : v) x -= std::log(sum);
    return v;
  };
  const auto lp = log_softmax(z), lr = log_softmax(ref);
  double kl = 0;
  for (std::size_t y = 0; y < 3; ++y) kl += std::exp(lp[y]) * (lp[y] - lr[y]);
  std::vector<double> expected(3);
  for (std::size_t y = 0; y < 3; ++y) {
    const problem p{{lp[y]}, {lp[y]}, {lr[y]}, {0}, {0, 1}, {.kl_weight = 1}};
    std::vector<double> d;
    p.run(d);
    for (std::size_t v = 0; v < 3; ++v)
      expected[v] += std::exp(lp[y]) * d[0] * ((v == y ? 1.0 : 0.0) - std::exp(lp[v]));
  }
  for (std::size_t v = 0; v < 3; ++v)
    CHECK(std::abs(expected[v] - std::exp(lp[v]) * (lp[v] - lr[v] - kl)) < 1e-15);
}

TEST_CASE("grpo_loss: what it refuses") {
  problem p{{-1, -1}, {-1, -1}, {-1}, {0.5}, {0, 2}, {}};
  std::vector<double> d;
  CHECK_THROWS_WITH(p.run(d), contains("grpo_loss: reference: expected 2, found 1"));
  p.reference = {-1, -1};
  p.offsets = {0, 3};
  CHECK_THROWS_WITH(p.run(d), contains("offsets[1]"));
}
