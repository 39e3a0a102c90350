// SPDX-License-Identifier: Apache-2.0
/// The threaded, vectorised host policy.
#pragma once

#include <dsv4/exec/policy.hpp>
#include <dsv4/exec/thread_pool.hpp>

#include <algorithm>
#include <memory>
#include <thread>

namespace dsv4::exec {

/// Runs on `threads` host threads. A cheap handle: copies share one pool.
/// Results do not depend on the number of threads, bit for bit: work is split by output row only.
class cpu {
 public:
  static constexpr space memory = space::host;
  static constexpr std::string_view name = "cpu";

  /// As many threads as the machine has.
  cpu() : cpu(static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))) {}
  /// Throws std::system_error when the threads cannot be started.
  explicit cpu(int threads) : pool_(std::make_shared<thread_pool>(std::max(1, threads))) {}

  int threads() const { return pool_->threads(); }

  /// Calls body(begin, end) on disjoint ranges that cover [0, count), each of about `grain` indices or more.
  template <class Body>
  void parallel_for(std::int64_t count, std::int64_t grain, const Body& body) const {
    run_ranges(
        count, grain,
        [](const void* of, std::int64_t begin, std::int64_t end) {
          (*static_cast<const Body*>(of))(begin, end);
        },
        &body);
  }

 private:
  /// Compiled once, whatever the bodies.
  void run_ranges(std::int64_t count, std::int64_t grain,
                  void (*body)(const void*, std::int64_t, std::int64_t), const void* of) const {
    if (count <= 0) return;
    // Eight ranges per thread balance uneven work; fewer when the ranges would be smaller than the grain.
    const std::int64_t ranges =
        std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, 8 * std::int64_t{threads()});
    pool_->run(ranges, [&](std::int64_t i) { body(of, count * i / ranges, count * (i + 1) / ranges); });
  }

  std::shared_ptr<thread_pool> pool_;
};

}  // namespace dsv4::exec
