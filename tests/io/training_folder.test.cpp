// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/hash.hpp>
#include <dsv4/io/training_folder.hpp>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
std::filesystem::path scratch_folder(const std::string& name) {
  const auto folder = std::filesystem::temp_directory_path() / ("dsv4_" + name + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  return folder;
}

/// A state in which every number is a function of the step.
struct toy {
  std::int64_t step = -1;
  std::vector<std::uint64_t> numbers = std::vector<std::uint64_t>(1 << 14);
  io::training_state state() {
    io::training_state s;
    s.add("step", step);
    s.add("numbers", vector_view<std::uint64_t>(numbers.data(), static_cast<std::int64_t>(numbers.size())));
    return s;
  }
  void become(std::int64_t at) {
    step = at;
    for (std::size_t i = 0; i < numbers.size(); ++i)
      numbers[i] = dsv4::detail::splitmix64(static_cast<std::uint64_t>(at) * numbers.size() + i);
  }
  bool whole() const {
    toy want;
    want.become(step);
    return want.numbers == numbers;
  }
};
}  // namespace

TEST_CASE("training_folder: the newest few are kept, the newest is loaded") {
  const auto path = scratch_folder("keep");
  const io::training_folder folder(path / "inner", 2);
  toy t;
  const auto state = t.state();
  CHECK_FALSE(folder.load_newest(state).has_value());
  for (std::int64_t step : {0, 5, 100, 1000000}) {
    t.become(step);
    folder.save(state, step);
  }
  CHECK(folder.steps() == std::vector<std::int64_t>{100, 1000000});
  t.become(3);
  CHECK(folder.load_newest(state) == 1000000);
  CHECK(t.step == 1000000);
  CHECK(t.whole());
  state.load(folder.file(100));
  CHECK(t.step == 100);
  CHECK(folder.file(7).filename() == "step-000000000007.safetensors");

  // A run that is set back keeps the file that it has just written.
  t.become(50);
  folder.save(state, 50);
  CHECK(std::filesystem::exists(folder.file(50)));
  // Unfinished files are removed, others are none of our business.
  std::ofstream(path / "inner" / "step-000000000200.safetensors.tmp") << "half";
  std::ofstream(path / "inner" / "notes.tmp") << "mine";
  std::ofstream(path / "inner" / "step-1.safetensors") << "mine";
  folder.save(state, 300);
  CHECK_FALSE(std::filesystem::exists(path / "inner" / "step-000000000200.safetensors.tmp"));
  CHECK(std::filesystem::exists(path / "inner" / "notes.tmp"));
  CHECK(std::filesystem::exists(path / "inner" / "step-1.safetensors"));
  CHECK_THROWS_WITH(io::training_folder(path, 0),
                    contains("training_folder: keep: expected at least 1, found 0"));
  CHECK_THROWS_AS(io::training_folder("/proc/no/such"), io_error);
  std::filesystem::remove_all(path);
}

TEST_CASE("training_folder: killed at any moment, what was saved is whole") {
  const auto path = scratch_folder("kill");
  const io::training_folder folder(path, 2);
  toy t;
  const auto state = t.state();
  t.become(0);
  folder.save(state, 0);
  std::int64_t last = 0;
  for (int round = 0; round < 25; ++round) {
    int pipe_ends[2];
    REQUIRE(::pipe(pipe_ends) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // saves in a loop, and tells of each save that has returned
      for (std::int64_t step = last + 1;; ++step) {
        t.become(step);
        try {
          folder.save(state, step);
        } catch (...) {
          ::_exit(1);
        }
        if (::write(pipe_ends[1], &step, sizeof step) != sizeof step) ::_exit(2);
      }
    }
    ::close(pipe_ends[1]);
    std::int64_t told = last;
    REQUIRE(::read(pipe_ends[0], &told, sizeof told) == sizeof told);  // it is at work
    const auto wait = dsv4::detail::splitmix64(static_cast<std::uint64_t>(round)) % 10000;
    std::this_thread::sleep_for(std::chrono::microseconds(wait));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));  // it did not end by itself
    while (::read(pipe_ends[0], &told, sizeof told) == sizeof told) {
    }
    ::close(pipe_ends[0]);

    t.become(-5);
    const auto step = folder.load_newest(state);
    REQUIRE(step.has_value());
    CHECK(*step >= told);      // what save had returned from is there
    CHECK(*step <= told + 1);  // and at most the one that it was busy with
    CHECK(t.step == *step);
    CHECK(t.whole());
    for (std::int64_t s : folder.steps()) {  // older ones too
      state.load(folder.file(s));
      CHECK(t.step == s);
      CHECK(t.whole());
    }
    last = *step;
  }
  t.become(last + 1);
  folder.save(state, last + 1);
  for (const auto& entry : std::filesystem::directory_iterator(path))
    CHECK(entry.path().extension() == ".safetensors");
  std::filesystem::remove_all(path);
}
