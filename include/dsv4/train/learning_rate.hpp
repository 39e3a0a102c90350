// SPDX-License-Identifier: Apache-2.0
/// The learning rate and the loss weights that follow it, as pure functions of the step.
#pragma once

#include <dsv4/core/expects.hpp>

#include <cmath>
#include <cstdint>
#include <numbers>

namespace dsv4 {

/// DeepSeek-V4's schedule (report, section 4.2): linear warm-up, constant for most of the run, half a cosine
/// near its end. Steps count from 0.
struct learning_rate_schedule {
  double peak;
  double last;                ///< reached at step `steps`, and kept
  std::int64_t steps;         ///< of the whole run
  std::int64_t warmup_steps;  ///< step warmup_steps - 1 is the first at the peak; 0: no warm-up
  std::int64_t decay_begin;   ///< the last step at the peak

  /// Throws contract_error unless 0 <= warmup_steps <= decay_begin <= steps.
  void check() const {
    expect(warmup_steps >= 0, "learning_rate_schedule", "warmup_steps", "0 or more", warmup_steps);
    expect(decay_begin >= warmup_steps, "learning_rate_schedule", "decay_begin",
           numbered{"at least warmup_steps = ", warmup_steps}, decay_begin);
    expect(steps >= decay_begin, "learning_rate_schedule", "steps",
           numbered{"at least decay_begin = ", decay_begin}, steps);
  }
};

/// The learning rate of step `step`. The first one is not 0: warm-up has warmup_steps equal parts.
inline double learning_rate(const learning_rate_schedule& s, std::int64_t step) {
  if (step < s.warmup_steps) return s.peak * double(step + 1) / double(s.warmup_steps);
  if (step <= s.decay_begin) return s.peak;
  if (step >= s.steps) return s.last;
  const double passed = double(step - s.decay_begin) / double(s.steps - s.decay_begin);
  return s.last + (s.peak - s.last) * 0.5 * (1 + std::cos(std::numbers::pi * passed));
}

/// The weight of the multi-token-prediction loss: 0.3, and 0.1 from the first step of the decay on.
constexpr double mtp_loss_weight(const learning_rate_schedule& s, std::int64_t step, double before = 0.3,
                                 double after = 0.1) {
  return step > s.decay_begin ? after : before;
}

}  // namespace dsv4
