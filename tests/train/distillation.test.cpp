// SPDX-License-Identifier: Apache-2.0
// On-policy distillation through the whole model: gradients against central differences with two teachers,
// one of another configuration; a teacher that is the student; grouping; and a student that learns from two.
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/distillation.hpp>
#include <dsv4/train/rollout.hpp>
#include <dsv4/train/rollout_trainer.hpp>

#include <numeric>

using namespace dsv4;
using testing::rollout_model;

namespace {

using store = parameter_store<rollout_model, double>;
using pass = rollout_pass<rollout_model, double>;

/// A teacher of another shape, with the same vocabulary.
constexpr model_config wide_teacher = [] {
  model_config c = rollout_model;
  c.hidden_size = 14;
  c.layers = schedule({attention_kind::csa, attention_kind::sliding});
  return c;
}();

template <model_config C, class T>
void teach(distillation<T>& d, const parameter_store<C, T>& teacher, const std::vector<double>& weight) {
  workspace w;
  d.template add_teacher<C, numerics::float32>(exec::cpu(2), w, teacher.views(), weight);
}

double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("distillation: gradients are those of its loss, the answers held fixed") {
  auto student = testing::named_weights<rollout_model, double>(6);
  const auto first = testing::named_weights<rollout_model, double>(7);
  const auto second = testing::named_weights<wide_teacher, double>(8);
  const auto batch = testing::some_answers();
  distillation<double> objective(batch, 4);
  teach(objective, first, {1, 0, 0.5, 2});
  teach(objective, second, {0, 1, 0.25, 0});
  workspace w;
  const exec::cpu p(2);
  store g;
  const double loss = pass::step(p, w, student.views(), batch, {}, objective, &g.views()).loss;
  CHECK(loss > 0.01);
  CHECK(objective.groups() == 4);  // the first, the second, both, the first
  const auto worst = testing::check_differences<rollout_model>(
      [&] { return pass::step(p, w, student.views(), batch, {}, objective, nullptr).loss; }, student, g);
  INFO(worst.text());
  CHECK(worst.checked > 100);
  CHECK(worst.error < 1e-7);

  // Which log-probabilities the answers were sampled with plays no part.
  rollout_batch sampled;
  for (std::int64_t i = 0; i < batch.size(); ++i)
    sampled.add(batch.prompt(i), batch.answer(i),
                std::vector<double>(batch.answer(i).size(), -0.1 * double(i)));
  distillation<double> again(sampled, 4);
  teach(again, first, {1, 0, 0.5, 2});
  teach(again, second, {0, 1, 0.25, 0});
  store h;
  pass::step(p, w, student.views(), sampled, {}, again, &h.views());
  CHECK(testing::same_bits(testing::flat(g), testing::flat(h)));
}

TEST_CASE("distillation: a teacher that is the student teaches nothing") {
  const auto m = testing::named_weights<rollout_model, double>(3),
             other = testing::named_weights<rollout_model, double>(4);
  const auto batch = testing::some_answers();
  workspace w;
  const auto run = [&](const store& teacher) {
    distillation<double> objective(batch);
    teach(objective, teacher, {1, 1, 1, 1});
    store g;
    const double loss = pass::step(exec::cpu(2), w, m.views(), batch, {}, objective, &g.views()).loss;
    return std::pair(loss, norm(testing::flat(g)));
  };
  const auto own = run(m), foreign = run(other);
  CHECK(foreign.first > 0.01);
  CHECK(std::abs(own.first) < 1e-14);
  CHECK(own.second < 1e-13 * foreign.second);
}

TEST_CASE("distillation: sequences that nobody teaches, and the order of sequences") {
  const auto m = testing::named_weights<rollout_model, double>(3),
             a = testing::named_weights<rollout_model, double>(4),
             b = testing::named_weights<rollout_model, double>(5);
  const auto batch = testing::some_answers();
  workspace w;
  const auto run = [&](const std::vector<std::int64_t>& order, std::vector<double> of_a,
                       std::vector<double> of_b, std::int64_t& groups) {
    rollout_batch sorted;
    std::vector<double> weight_a, weight_b;
    for (const std::int64_t i : order) {
      sorted.add(batch, i);
      weight_a.push_back(of_a[static_cast<std::size_t>(i)]);
      weight_b.push_back(of_b[static_cast<std::size_t>(i)]);
    }
    distillation<double> objective(sorted);
    teach(objective, a, weight_a);
    teach(objective, b, weight_b);
    store g;
    pass::step(exec::cpu(2), w, m.views(), sorted, {}, objective, &g.views());
    groups = objective.groups();
    return testing::flat(g);
  };
  std::int64_t groups = 0;
  const auto mixed = run({0, 1, 2, 3}, {1, 0, 1, 0}, {0, 1, 0, 1}, groups);
  CHECK(groups == 4);
  const auto sorted = run({0, 2, 1, 3}, {1, 0, 1, 0}, {0, 1, 0, 1}, groups);
  CHECK(groups == 2);
  CHECK(testing::difference(sorted, mixed) < 1e-12);
  // Halves of a sum: the loss is linear in the weights.
  const auto half = run({0, 2, 1, 3}, {0.5, 0, 0.5, 0}, {0, 0.5, 0, 0.5}, groups);
  std::vector<double> twice(half);
  for (double& x : twice) x *= 2;
  CHECK(testing::difference(twice, mixed) < 1e-12);
  // Nobody teaches any: a loss and gradients of exactly 0.
  CHECK(norm(run({0, 1, 2, 3}, {0, 0, 0, 0}, {0, 0, 0, 0}, groups)) == 0);
  CHECK(groups == 0);
}

TEST_CASE("distillation: a student learns from its own answers what two teachers know") {
  // Each teacher answers the prompts of its own kind; the student begins as neither.
  const auto first = testing::named_weights<rollout_model, float>(4),
             second = testing::named_weights<rollout_model, float>(5);
  const std::vector<std::vector<std::int32_t>> prompts{{0, 4, 4}, {0, 5, 6}, {0, 7}, {0, 8, 9, 10}};
  const std::vector<double> of_first{1, 1, 0, 0}, of_second{0, 0, 1, 1};
  const auto each = [](const std::vector<double>& of_prompts) {
    std::vector<double> all;
    for (const double x : of_prompts) all.insert(all.end(), 8, x);
    return all;
  };
  const auto run = [&](int threads) {
    rollout_trainer<rollout_model> student(
        {.schedule = {.peak = 0.02, .last = 0.001, .steps = 150, .warmup_steps = 2, .decay_begin = 60}});
    student.start_from(testing::named_weights<rollout_model, float>(3));
    rollout<rollout_model> writer;
    workspace w;
    const exec::cpu p(threads);
    std::vector<double> losses;
    for (int step = 0; step < 150; ++step) {
      rollout_batch batch;
      writer.sample(p, w, student.current(p), prompts,
                    {.answers = 8, .most_tokens = 6, .seed = std::uint64_t(step)}, batch);
      distillation<float> objective(batch);
      objective.add_teacher<rollout_model, numerics::float32>(p, w, first.views(), each(of_first));
      objective.add_teacher<rollout_model, numerics::float32>(p, w, second.views(), each(of_second));
      losses.push_back(student.step(p, w, batch, objective).loss);
    }
    return losses;
  };
  const auto losses = run(2);
  CHECK(losses.front() > 0.1);
  const double last =
      std::accumulate(losses.end() - 10, losses.end(), 0.0) / 10;  // every step has other answers
  CHECK(last < losses.front() / 3);
  CHECK(run(1) == losses);
}

TEST_CASE("distillation: what it keeps of a teacher, and what it refuses") {
  const auto teacher = testing::named_weights<wide_teacher, double>(3);
  const auto batch = testing::some_answers();
  distillation<double> objective(batch);
  teach(objective, teacher, {1, 0, 0, 0});
  CHECK(objective.teachers() == 1);
  CHECK(objective.bytes() == 16 * 14 * 8);
  CHECK_THROWS_WITH(teach(objective, teacher, {1, 0}), "distillation: weights: expected 4, found 2");
  CHECK_THROWS_WITH(teach(objective, teacher, {1, 0, -1, 0}),
                    testing::contains("distillation: weights[2]: expected 0 or more, found -1"));
}
