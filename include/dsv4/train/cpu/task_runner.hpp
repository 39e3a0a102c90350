// SPDX-License-Identifier: Apache-2.0
/// Tasks for all threads of a policy, or for the one that asks.
#pragma once

#include <dsv4/exec/cpu.hpp>

#include <cstdint>

namespace dsv4::detail {

/// Code that is written for both runs within a task of another parallel region too, where no other may start.
struct task_runner {
  const exec::cpu* threads;  ///< null: here and now

  template <class Task>
  void operator()(std::int64_t count, const Task& task) const {
    const auto range = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) task(i);
    };
    if (threads)
      threads->parallel_for(count, 1, range);
    else
      range(0, count);
  }
};

}  // namespace dsv4::detail
