// SPDX-License-Identifier: Apache-2.0
/// How long and how fast each stage learns.
#pragma once

#include "tasks.hpp"
#include <dsv4/train/rollout_trainer.hpp>

#include <algorithm>
#include <array>
#include <cstdint>

namespace distill {

struct recipe {
  std::int64_t base_steps = 250, base_batch = 64;  ///< problems of all tasks, half of them additions
  /// Right answers to the problems of one task, so many that GRPO has something left to do.
  std::array<std::int64_t, tasks.size()> tuning_steps{400, 40, 100};
  std::int64_t tuning_batch = 64;
  std::int64_t grpo_steps = 20, grpo_prompts = 48, group = 8;  ///< rollouts: groups of answers to prompts
  std::int64_t grpo_updates = 2;                               ///< by each of them
  std::int64_t student_steps = 800;
  std::array<std::int64_t, tasks.size()> student_prompts{64, 32, 32};  ///< one answer to each
  std::int64_t imitated_steps = 400;  ///< of the student's, first: the answers are the specialists'
  double rate = 5e-3, grpo_rate = 5e-4;
  std::int64_t test_problems = 500;  ///< of each task
};

/// Every stage, none long enough to learn much.
inline recipe quick_recipe() {
  return {.base_steps = 16,
          .base_batch = 24,
          .tuning_steps = {8, 8, 8},
          .tuning_batch = 16,
          .grpo_steps = 1,
          .grpo_prompts = 4,
          .group = 4,
          .student_steps = 12,
          .student_prompts = {8, 8, 8},
          .imitated_steps = 6,
          .test_problems = 20};
}

inline dsv4::rollout_trainer_options training(double rate, std::int64_t steps) {
  dsv4::rollout_trainer_options o;
  o.schedule = {.peak = rate,
                .last = rate / 20,
                .steps = steps,
                .warmup_steps = std::min<std::int64_t>(10, steps / 4),
                .decay_begin = steps / 2};
  return o;
}

}  // namespace distill
