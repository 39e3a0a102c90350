// SPDX-License-Identifier: Apache-2.0
/// A fixed set of worker threads that run index ranges.
#pragma once

#include <dsv4/core/macros.hpp>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace dsv4::exec {

/// `threads - 1` workers plus the calling thread. One parallel region at a time; calls from several threads
/// queue.
class thread_pool {
 public:
  /// Throws std::system_error or std::bad_alloc when the threads cannot be started; none is left then.
  explicit thread_pool(int threads)
      : threads_(std::max(threads, 1)), shares_(new share[static_cast<std::size_t>(threads_)]) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
      stop();
      throw;
    }
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { stop(); }

  int threads() const { return threads_; }

  /// Calls task(i) for every i in [0, count), each exactly once, in no fixed order: every thread begins with
  /// its own share of the range, the same in every region, whose data its caches may still hold, and then
  /// helps the others. The first exception of a task is rethrown here after all have ended. Tasks must not
  /// call run() on the same pool.
  template <class Task>
  void run(std::int64_t count, const Task& task) {
    run(
        count, [](const void* t, std::int64_t i) { (*static_cast<const Task*>(t))(i); }, &task);
  }

 private:
  using job = void (*)(const void*, std::int64_t);

  /// Pauses before a thread that waits does so elsewhere: 50 to 200 us in all.
  static constexpr int spins = 4000;

  /// job(task, i) for every i. Compiled once, whatever the tasks.
  void run(std::int64_t count, job run_one, const void* task) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
      for (std::int64_t i = 0; i < count; ++i) run_one(task, i);
      return;
    }
    std::lock_guard region(region_);
    {
      std::lock_guard lock(mutex_);
      job_ = run_one;
      context_ = task;
      for (int s = 0; s < threads(); ++s) {
        shares_[s].next.store(count * s / threads(), std::memory_order_relaxed);
        shares_[s].end = count * (s + 1) / threads();
      }
      running_.store(static_cast<int>(workers_.size()));
      failure_ = nullptr;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    drain(0);
    // Regions are short: spinning a little is cheaper than sleeping.
    for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < spins)
        DSV4_PAUSE();
      else
        std::this_thread::yield();
    }
    if (failure_) std::rethrow_exception(failure_);
  }

  void stop() {
    {
      std::lock_guard lock(mutex_);
      stop_.store(true);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
  }
  /// A part of the range, in a cache line of its own.
  struct alignas(64) share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  void drain(int own) {
    for (int s = 0; s < threads(); ++s) {
      share& from = shares_[(own + s) % threads()];
      for (std::int64_t i; (i = from.next.fetch_add(1)) < from.end;) {
        try {
          job_(context_, i);
        } catch (...) {
          std::lock_guard lock(mutex_);
          if (!failure_) failure_ = std::current_exception();
        }
      }
    }
  }
  void work(int own) {
    std::uint64_t seen = 0;
    for (;;) {
      // A decode step is a train of small regions: stay awake for a while, as to be woken takes longer than
      // most regions do.
      for (int spin = 0; spin < spins && generation_.load(std::memory_order_acquire) == seen; ++spin)
        DSV4_PAUSE();
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        if (stop_.load()) return;
      }
      drain(own);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int threads_;
  const std::unique_ptr<share[]> shares_;
  std::vector<std::thread> workers_;
  std::mutex region_, mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> running_{0};
  const void* context_ = nullptr;
  job job_ = nullptr;
  std::exception_ptr failure_;
};

}  // namespace dsv4::exec
