// SPDX-License-Identifier: Apache-2.0
/// The stages: a base model, specialists, and the ways to merge them into one student.
#pragma once

#include "model.hpp"
#include "recipe.hpp"
#include "tasks.hpp"
#include <dsv4/train/distillation.hpp>
#include <dsv4/train/grpo.hpp>
#include <dsv4/train/initialise.hpp>
#include <dsv4/train/sft_loss.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace distill {

/// Adds value by value: to += factor * from.
inline void add_weights(weight_store& to, const weight_store& from, float factor) {
  std::vector<const float*> sources;
  auto views = from.views();
  dsv4::for_each_parameter<config>(views, [&]<class V>(const dsv4::parameter_info&, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, float>) sources.push_back(v.data);
  });
  std::size_t next = 0;
  dsv4::for_each_parameter<config>(to.views(), [&]<class V>(const dsv4::parameter_info&, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, float>) {
      const float* source = sources[next++];
      for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] += factor * source[i];
    }
  });
}

/// What a job computes with: jobs that run at the same time have one each.
struct worker {
  dsv4::exec::cpu cpu{1};
  dsv4::workspace memory;
  dsv4::rollout<config> writer;
};

/// The number of a stage's random sequence.
inline std::uint64_t stage_seed(std::uint64_t seed, std::string_view stage) {
  return dsv4::detail::splitmix64(seed * 1000003 + dsv4::detail::fnv1a64(stage));
}

using model = std::unique_ptr<trainer>;

inline model start(const dsv4::rollout_trainer_options& options, const trainer& from) {
  auto m = std::make_unique<trainer>(options);
  m->start_from(from.weights());
  return m;
}

/// Learns every character of problems of all tasks with their answers, for a short time.
inline model make_base(worker& on, const recipe& r, std::uint64_t seed) {
  auto m = std::make_unique<trainer>(training(r.rate, r.base_steps));
  dsv4::initialise_for_training(m->weights(), {.seed = stage_seed(seed, "weights")});
  random_bits random(stage_seed(seed, "base"));
  const tokens begin{config.bos_token_id};
  for (std::int64_t step = 0; step < r.base_steps; ++step) {
    dsv4::rollout_batch batch;
    for (std::int64_t i = 0; i < r.base_batch; ++i) {
      const task& t =
          tasks[static_cast<std::size_t>(i % 4 % std::int64_t{tasks.size()})];  // half of it addition
      const std::string prompt = draw(t, random, false);
      batch.add(begin, answer_tokens(prompt + t.solve(prompt)));
    }
    m->step(on.cpu, on.memory, batch, dsv4::sft_loss<float>{});
  }
  return m;
}

/// Learns right answers to the problems of one task.
inline model tune(worker& on, const recipe& r, std::uint64_t seed, std::size_t which, const trainer& base) {
  const task& t = tasks[which];
  const std::int64_t steps = r.tuning_steps[which];
  model m = start(training(r.rate, steps), base);
  random_bits random(stage_seed(seed, t.name));
  for (std::int64_t step = 0; step < steps; ++step) {
    dsv4::rollout_batch batch;
    for (std::int64_t i = 0; i < r.tuning_batch; ++i) {
      const std::string prompt = draw(t, random, false);
      batch.add(prompt_tokens(prompt), answer_tokens(t.solve(prompt)));
    }
    m->step(on.cpu, on.memory, batch, dsv4::sft_loss<float>{});
  }
  return m;
}

/// Learns from the rewards of its own answers alone. The tuned model is the reference.
inline model reinforce(worker& on, const recipe& r, std::uint64_t seed, const task& t, const trainer& tuned) {
  model m = start(training(r.grpo_rate, r.grpo_steps * r.grpo_updates), tuned);
  random_bits random(stage_seed(seed, t.name) + 1);
  for (std::int64_t step = 0; step < r.grpo_steps; ++step) {
    std::vector<std::string> prompts;
    std::vector<tokens> ids;
    for (std::int64_t i = 0; i < r.grpo_prompts; ++i) {
      prompts.push_back(draw(t, random, false));
      ids.push_back(prompt_tokens(prompts.back()));
    }
    dsv4::rollout_batch batch;
    on.writer.sample(on.cpu, on.memory, m->current(on.cpu), ids,
                     {.answers = r.group, .most_tokens = longest_answer, .seed = random()}, batch);
    std::vector<double> rewards;
    for (std::int64_t i = 0; i < batch.size(); ++i)
      rewards.push_back(reward(t, prompts[static_cast<std::size_t>(i / r.group)], text_of(batch.answer(i))));
    dsv4::grpo<config> objective(on.cpu, on.memory, m->current(on.cpu), tuned.weights().views(), batch,
                                 rewards, r.group);
    for (std::int64_t update = 0; update < r.grpo_updates; ++update)
      m->step(on.cpu, on.memory, batch, objective, &objective.routing());
  }
  return m;
}

using specialists = std::array<model, tasks.size()>;

/// Prompts of all tasks, sorted by task.
struct prompt_batch {
  std::vector<std::size_t> task_of;
  std::vector<std::string> texts;
  std::vector<tokens> ids;

  prompt_batch(random_bits& random, const std::array<std::int64_t, tasks.size()>& counts,
               bool from_held_out) {
    for (std::size_t t = 0; t < tasks.size(); ++t)
      for (std::int64_t i = 0; i < counts[t]; ++i) {
        task_of.push_back(t);
        texts.push_back(draw(tasks[t], random, from_held_out));
        ids.push_back(prompt_tokens(texts.back()));
      }
  }
};

/// The student's objective: each prompt listens to its task's specialist.
inline dsv4::distillation<float> listen(worker& on, const specialists& teachers, const prompt_batch& prompts,
                                        const dsv4::rollout_batch& batch) {
  dsv4::distillation<float> objective(batch);
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    std::vector<double> weight;
    for (const std::size_t own : prompts.task_of) weight.push_back(own == t ? 1 : 0);
    objective.add_teacher<config, dsv4::numerics::float32>(on.cpu, on.memory, teachers[t]->weights().views(),
                                                           weight);
  }
  return objective;
}

/// Answers that the specialists write to their prompts.
inline dsv4::rollout_batch ask(worker& on, const specialists& teachers, const prompt_batch& prompts,
                               std::uint64_t seed) {
  dsv4::rollout_batch batch;
  std::size_t first = 0;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    const auto count = static_cast<std::size_t>(std::ranges::count(prompts.task_of, t));
    on.writer.sample(on.cpu, on.memory, teachers[t]->current(on.cpu),
                     std::span(prompts.ids).subspan(first, count),
                     {.most_tokens = longest_answer, .seed = seed + t}, batch);
    first += count;
  }
  return batch;
}

/// A student of `imitated` steps that learn the specialists' answers, then, to the end, of on-policy
/// distillation: its own answers, the specialists' opinion of every token.
inline model study(worker& on, const recipe& r, std::uint64_t seed, const trainer& base,
                   const specialists& teachers, std::int64_t imitated) {
  model m = start(training(r.rate, r.student_steps), base);
  random_bits random(stage_seed(seed, "student"));
  for (std::int64_t step = 0; step < r.student_steps; ++step) {
    const prompt_batch prompts(random, r.student_prompts, false);
    if (step < imitated) {
      m->step(on.cpu, on.memory, ask(on, teachers, prompts, random()), dsv4::sft_loss<float>{});
      continue;
    }
    dsv4::rollout_batch batch;
    on.writer.sample(on.cpu, on.memory, m->current(on.cpu), prompts.ids,
                     {.most_tokens = longest_answer, .seed = random()}, batch);
    m->step(on.cpu, on.memory, batch, listen(on, teachers, prompts, batch));
  }
  return m;
}

/// For contrast: the mean of the specialists' weights.
inline model average(const specialists& teachers) {
  auto m = std::make_unique<trainer>(training(0, 1));
  m->start_from(teachers[0]->weights());
  add_weights(m->weights(), teachers[0]->weights(), 1 / float(tasks.size()) - 1);
  for (std::size_t t = 1; t < tasks.size(); ++t)
    add_weights(m->weights(), teachers[t]->weights(), 1 / float(tasks.size()));
  return m;
}

/// Share of right answers to held-out problems, the same for every model of a seed. Temperature 0 takes the
/// likeliest token each time.
inline double accuracy(worker& on, const recipe& r, std::uint64_t seed, const task& t, double temperature,
                       trainer& m) {
  random_bits random(stage_seed(seed, t.name) + 2);
  std::vector<std::string> prompts;
  std::vector<tokens> ids;
  for (std::int64_t i = 0; i < r.test_problems; ++i) {
    prompts.push_back(draw(t, random, true));
    ids.push_back(prompt_tokens(prompts.back()));
  }
  dsv4::rollout_batch batch;
  on.writer.sample(on.cpu, on.memory, m.current(on.cpu), ids,
                   {.most_tokens = longest_answer, .temperature = temperature, .seed = random()}, batch);
  double right = 0;
  for (std::int64_t i = 0; i < batch.size(); ++i)
    right += reward(t, prompts[static_cast<std::size_t>(i)], text_of(batch.answer(i)));
  return right / double(r.test_problems);
}

/// Mean KL(model || its task's specialist) per token of the model's own answers to held-out problems.
inline double divergence(worker& on, const recipe& r, std::uint64_t seed, const specialists& teachers,
                         trainer& m) {
  random_bits random(stage_seed(seed, "divergence"));
  const prompt_batch prompts(random, {r.test_problems, r.test_problems, r.test_problems}, true);
  dsv4::rollout_batch batch;
  on.writer.sample(on.cpu, on.memory, m.current(on.cpu), prompts.ids,
                   {.most_tokens = longest_answer, .seed = random()}, batch);
  auto objective = listen(on, teachers, prompts, batch);
  return trainer::pass::step(on.cpu, on.memory, m.current(on.cpu), batch, {}, objective, nullptr).loss;
}

}  // namespace distill
