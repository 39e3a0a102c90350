// SPDX-License-Identifier: Apache-2.0
/// Independent jobs on a few threads.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace distill {

/// Calls run(job, thread) for every job below `count`, in order, on `threads` threads; done(jobs) after each
/// one, by one thread at a time. Throws the first exception of any. What a job computes must not depend on
/// its thread.
inline void run_jobs(int threads, std::size_t count, const std::function<void(std::size_t, std::size_t)>& run,
                     const std::function<void(std::size_t)>& done) {
  std::mutex guard;
  std::size_t next = 0, finished = 0;
  std::exception_ptr failure;
  const auto work = [&](std::size_t thread) {
    for (;;) {
      std::size_t job;
      {
        const std::scoped_lock lock(guard);
        if (next == count || failure) return;
        job = next++;
      }
      try {
        run(job, thread);
        const std::scoped_lock lock(guard);
        done(++finished);
      } catch (...) {
        const std::scoped_lock lock(guard);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::size_t i = 1; i < static_cast<std::size_t>(threads); ++i) others.emplace_back(work, i);
    work(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace distill
