// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/thread_pool.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

// The sanitizers take more address space than any limit would leave.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DSV4_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DSV4_TEST_SANITIZED 1
#endif
#endif
#if defined(__linux__) && !defined(DSV4_TEST_SANITIZED)
#define DSV4_TEST_LIMITS 1
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace dsv4;
using exec::thread_pool;

TEST_CASE("thread_pool: every index once, whatever the threads; none of an empty range") {
  for (const int threads : {-1, 0, 1, 2, 3, 8}) {
    thread_pool pool(threads);
    CHECK(pool.threads() == std::max(1, threads));
    for (const std::int64_t count : {-5, 0, 1, 2, 7, 1000}) {
      // Not atomic: what the tasks wrote must be there when run returns.
      std::vector<int> calls(1000, 0);
      pool.run(count, [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
      for (std::int64_t i = 0; i < 1000; ++i) {
        INFO(threads << " threads, " << count << " tasks, task " << i);
        CHECK(calls[static_cast<std::size_t>(i)] == (i < count ? 1 : 0));
      }
    }
  }
}

TEST_CASE("thread_pool: many regions one after another") {
  thread_pool pool(4);
  std::vector<std::int64_t> sums(5, 0);
  for (std::int64_t region = 0; region < 20000; ++region)
    pool.run(5, [&](std::int64_t i) { sums[static_cast<std::size_t>(i)] += region * i; });
  for (std::int64_t i = 0; i < 5; ++i) CHECK(sums[static_cast<std::size_t>(i)] == i * 20000 * 19999 / 2);
}

TEST_CASE("thread_pool: an exception of a task arrives when all have ended, and the pool goes on") {
  for (const int threads : {1, 2, 4}) {
    thread_pool pool(threads);
    for (const std::int64_t bad : {0, 1, 63}) {
      std::atomic<int> begun{0}, ended{0};
      CHECK_THROWS_WITH(pool.run(64,
                                 [&](std::int64_t i) {
                                   ++begun;
                                   if (i == bad) {
                                     ++ended;
                                     throw std::runtime_error("task " + std::to_string(i));
                                   }
                                   std::this_thread::yield();
                                   ++ended;
                                 }),
                        "task " + std::to_string(bad));
      CHECK(begun == ended);
      if (threads > 1) CHECK(ended == 64);
    }
    // Of several exceptions one arrives; then there are none left over.
    CHECK_THROWS_AS(pool.run(64, [](std::int64_t) { throw std::bad_alloc(); }), std::bad_alloc);
    std::atomic<int> calls{0};
    CHECK_NOTHROW(pool.run(64, [&](std::int64_t) { ++calls; }));
    CHECK(calls == 64);
    CHECK_THROWS_AS(pool.run(1, [](std::int64_t) { throw 5; }), int);
  }
}

TEST_CASE("thread_pool: callers on several threads queue") {
  thread_pool pool(3);
  std::vector<std::int64_t> sums(4, 0);
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int region = 0; region < 500; ++region) {
        std::vector<std::int64_t> squares(20);
        pool.run(20, [&](std::int64_t i) { squares[static_cast<std::size_t>(i)] = i * i; });
        for (const std::int64_t s : squares) sums[caller] += s;
      }
    });
  for (auto& c : callers) c.join();
  for (const std::int64_t sum : sums) CHECK(sum == 500 * (19 * 20 * 39 / 6));
}

TEST_CASE("thread_pool: a task may use another pool") {
  thread_pool outer(3), inner(2);
  std::vector<std::int64_t> sums(6, 0);
  outer.run(6, [&](std::int64_t i) {
    std::vector<std::int64_t> part(10);
    inner.run(10, [&](std::int64_t j) { part[static_cast<std::size_t>(j)] = i * j; });
    for (const std::int64_t p : part) sums[static_cast<std::size_t>(i)] += p;
  });
  for (std::int64_t i = 0; i < 6; ++i) CHECK(sums[static_cast<std::size_t>(i)] == 45 * i);
}

TEST_CASE("exec::cpu: ranges cover all indices, are as long as the grain, and few") {
  for (const int threads : {1, 2, 5}) {
    const exec::cpu p(threads);
    for (const std::int64_t count : {-1, 0, 1, 2, 19, 1000})
      for (const std::int64_t grain : {0, 1, 7, 999, 5000}) {
        std::mutex mutex;
        std::vector<std::pair<std::int64_t, std::int64_t>> ranges;
        p.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
          const std::lock_guard lock(mutex);
          ranges.emplace_back(begin, end);
        });
        std::sort(ranges.begin(), ranges.end());
        INFO(threads << " threads, " << count << " indices, grain " << grain);
        std::int64_t next = 0;
        for (const auto& [begin, end] : ranges) {
          CHECK(begin == next);
          CHECK(end > begin);
          if (count >= grain) CHECK(end - begin >= grain);
          next = end;
        }
        CHECK(next == std::max<std::int64_t>(count, 0));
        CHECK(static_cast<int>(ranges.size()) <= 8 * threads);
      }
  }
}

TEST_CASE("exec::cpu: copies share the threads, and the last one keeps them") {
  auto first = std::make_unique<exec::cpu>(3);
  const exec::cpu second = *first;
  first.reset();
  std::atomic<int> calls{0};
  second.parallel_for(100, 1, [&](std::int64_t begin, std::int64_t end) { calls += int(end - begin); });
  CHECK(calls == 100);
  CHECK(exec::cpu(0).threads() == 1);
  CHECK(exec::cpu(-2).threads() == 1);
}

#ifdef DSV4_TEST_LIMITS
TEST_CASE("thread_pool: when not all threads can be started, it throws and leaves none") {
  // In a process of its own, with address space for some stacks; the alarm ends one that hangs.
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(30);
    rlimit limit = {};
    getrlimit(RLIMIT_AS, &limit);
    const rlim_t before = std::exchange(limit.rlim_cur, rlim_t{400} << 20);
    if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(2);
    for (int attempt = 0; attempt < 3; ++attempt) {
      try {
        const exec::cpu p(2000);
        _exit(3);
      } catch (const std::system_error&) {
      } catch (const std::bad_alloc&) {
      }
    }
    limit.rlim_cur = before;
    if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(4);
    std::atomic<int> calls{0};
    thread_pool(3).run(50, [&](std::int64_t) { ++calls; });
    _exit(calls == 50 ? 0 : 5);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK_FALSE(WIFSIGNALED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
#endif
