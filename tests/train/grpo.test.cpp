// SPDX-License-Identifier: Apache-2.0
// GRPO through the whole model: gradients against central differences; what on-policy answers reduce it to;
// and a policy that learns from rewards alone.
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/grpo.hpp>
#include <dsv4/train/rollout.hpp>
#include <dsv4/train/rollout_trainer.hpp>

using namespace dsv4;
using testing::rollout_model;

namespace {

using store = parameter_store<rollout_model, double>;
using pass = rollout_pass<rollout_model, double>;

const std::vector<double> rewards{1, 0, 0.25, 0.5};  // of the four answers: two groups of two

/// All weights of `a` moved a part of the way to those of `b`.
store between(const store& a, const store& b, double part) {
  store m = testing::named_weights<rollout_model, double>(0);
  const auto x = testing::flat(a), y = testing::flat(b);
  std::size_t at = 0;
  for_each_parameter<rollout_model>(m.views(), [&]<class V>(const parameter_info&, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, double>)
      for (std::int64_t i = 0; i < v.size(); ++i, ++at) v.data[i] = x[at] + part * (y[at] - x[at]);
  });
  return m;
}

}  // namespace

TEST_CASE("grpo: gradients are those of its loss, with old and reference policies and kept routing") {
  // Old weights close by: ratios are neither 1 nor clipped.
  const auto old = testing::named_weights<rollout_model, double>(6),
             far = testing::named_weights<rollout_model, double>(7);
  auto now = between(old, far, 0.01);
  const auto reference = between(old, far, 0.1);
  const auto batch = testing::some_answers();
  workspace w;
  const exec::cpu p(2);
  grpo<rollout_model, double> objective(p, w, old.views(), reference.views(), batch, rewards, 2,
                                        {.clip_below = 0.6, .clip_above = 0.6, .kl_weight = 0.2});
  store g;
  const rollout_pass_options<rollout_model> options{0, &objective.routing()};
  pass::step(p, w, now.views(), batch, options, objective, &g.views());
  CHECK(objective.result().clipped_share == 0);
  CHECK(objective.result().mean_kl > 1e-4);
  const auto worst = testing::check_differences<rollout_model>(
      [&] { return pass::step(p, w, now.views(), batch, options, objective, nullptr).loss; }, now, g);
  INFO(worst.text());
  CHECK(worst.checked > 100);
  CHECK(worst.error < 1e-7);
}

TEST_CASE("grpo: on policy, the gradient is that of the advantages' weighted log-probabilities") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = testing::some_answers();
  workspace w;
  const exec::cpu p(2);
  grpo<rollout_model, double> objective(p, w, m.views(), m.views(), batch, rewards, 2, {.kl_weight = 0.5});
  CHECK(objective.advantages()(0) == 0.5);
  CHECK(objective.advantages()(3) == 0.125);
  store got, want;
  const auto losses = pass::step(p, w, m.views(), batch, {0, &objective.routing()}, objective, &got.views());
  CHECK(std::abs(losses.loss) < 1e-12);  // ratios of 1, so the advantages of a group, which sum to 0
  CHECK(objective.result().mean_kl < 1e-20);

  /// -1/4 sum_i A_i / |o_i| sum_t log pi, by the cross-entropy of each answer alone.
  const std::vector<double> advantages{0.5, -0.5, -0.125, 0.125};
  for (std::int64_t i = 0; i < 4; ++i) {
    rollout_batch one;
    one.add(batch, i);
    pass::step(
        p, w, m.views(), one, {},
        [&](const auto& policy, workspace& memory, const answer_states<double>& s) {
          const std::int64_t rows = s.hidden.extent[0];
          const workspace_scope scope(memory);
          const auto loss = memory.take<double>(rows), lse = memory.take<double>(rows),
                     dloss = memory.take<double>(rows);
          std::fill_n(dloss.data, rows, advantages[static_cast<std::size_t>(i)] / 4 / double(rows));
          const cross_entropy<double>::inputs in{s.hidden, s.head, s.answers};
          cross_entropy<double>::forward(policy, memory, in, {loss}, {lse});
          cross_entropy<double>::backward(policy, memory, in, {lse}, {dloss}, {s.dhidden, s.dhead});
          return 0.0;
        },
        &want.views());
  }
  CHECK(testing::difference(testing::flat(got), testing::flat(want)) < 1e-12);
}

TEST_CASE("grpo: answers of equal reward teach nothing, and the reference pulls where the policy has moved") {
  const auto m = testing::named_weights<rollout_model, double>(3),
             other = testing::named_weights<rollout_model, double>(4);
  const auto batch = testing::some_answers();
  workspace w;
  const exec::cpu p(2);
  const std::vector<double> equal(4, 0.7);
  const auto norm_of = [&](const store& reference, double kl_weight) {
    grpo<rollout_model, double> objective(p, w, m.views(), reference.views(), batch, equal, 2,
                                          {.kl_weight = kl_weight});
    store g;
    pass::step(p, w, m.views(), batch, {0, &objective.routing()}, objective, &g.views());
    double sum = 0;
    for (const double x : testing::flat(g)) sum += x * x;
    return std::sqrt(sum);
  };
  CHECK(norm_of(other, 0) == 0);
  CHECK(norm_of(m, 1) < 1e-10);
  CHECK(norm_of(other, 1) > 1e-2);
}

TEST_CASE("grpo: a policy learns what is rewarded") {
  // Rewarded: an answer that begins with token 3 and ends at once. By chance 1 of 121.
  const std::vector<std::vector<std::int32_t>> prompts{{0, 4}, {0, 5, 6}, {0, 7, 8, 9}, {0, 10}};
  const auto rewards_of = [](const rollout_batch& batch) {
    std::vector<double> rewards;
    for (std::int64_t i = 0; i < batch.size(); ++i) {
      const auto a = batch.answer(i);
      rewards.push_back((a[0] == 3 ? 0.5 : 0) + (a.size() == 2 && a[1] == 1 ? 0.5 : 0));
    }
    return rewards;
  };
  const auto run = [&](int threads) {
    rollout_trainer<rollout_model> policy(
        {.schedule = {.peak = 0.01, .last = 0.002, .steps = 60, .warmup_steps = 2, .decay_begin = 40}});
    policy.start_from(testing::named_weights<rollout_model, float>(3));
    const auto reference = testing::named_weights<rollout_model, float>(3);
    rollout<rollout_model> writer;
    workspace w;
    const exec::cpu p(threads);
    std::vector<double> means;
    for (int step = 0; step < 30; ++step) {
      rollout_batch batch;
      writer.sample(p, w, policy.current(p), prompts,
                    {.answers = 16, .most_tokens = 4, .seed = std::uint64_t(step)}, batch);
      const auto rewards = rewards_of(batch);
      means.push_back(0);
      for (const double r : rewards) means.back() += r / double(rewards.size());
      grpo<rollout_model> objective(p, w, policy.current(p), reference.views(), batch, rewards, 16);
      for (int update = 0; update < 2; ++update) policy.step(p, w, batch, objective, &objective.routing());
    }
    return means;
  };
  const auto means = run(2);
  CHECK(means.front() < 0.2);
  CHECK(means.back() > 0.9);
  CHECK(run(1) == means);
}

TEST_CASE("grpo: what it refuses") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = testing::some_answers();
  workspace w;
  using objective = grpo<rollout_model, double>;
  CHECK_THROWS_WITH(objective(exec::cpu(1), w, m.views(), m.views(), batch, std::vector<double>{1, 2}, 2),
                    "grpo: rewards: expected 4, found 2");
  CHECK_THROWS_WITH(objective(exec::cpu(1), w, m.views(), m.views(), batch, rewards, 3),
                    testing::contains("group_advantages: group: expected a divisor of 4, found 3"));
}
