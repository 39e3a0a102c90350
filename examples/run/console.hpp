// SPDX-License-Identifier: Apache-2.0
/// What a command-line program needs around the model: interruption, a progress line, clocks, memory.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <unistd.h>

namespace runner {

inline volatile std::sig_atomic_t interrupted_flag = 0;

/// Ctrl-C asks the loops to stop at the next token; a second one ends the program at once.
inline void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted_flag = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
}
inline bool interrupted() { return interrupted_flag != 0; }

/// Says what went wrong, with the program's name before it, and gives its status.
inline int failed(std::string_view program, const std::exception& failure) {
  const std::string_view what = failure.what();
  if (!what.starts_with(program)) std::cerr << program << ": ";
  std::cerr << what << '\n';
  return 1;
}

class stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(clock::now() - start_).count(); }

 private:
  using clock = std::chrono::steady_clock;
  clock::time_point start_ = clock::now();
};

/// A line on the terminal's stderr that redraws itself, and nothing where stderr is no terminal.
class progress_line {
 public:
  progress_line(std::string label, std::int64_t total) : label_(std::move(label)), total_(total) {}
  progress_line(const progress_line&) = delete;
  progress_line& operator=(const progress_line&) = delete;
  ~progress_line() { clear(); }

  void show(std::int64_t done) {
    if (!terminal_ || total_ == 0) return;
    const double elapsed = watch_.seconds(), part = double(done) / double(total_);
    std::string bar(30, '.');
    bar.replace(0, static_cast<std::size_t>(part * 30), static_cast<std::size_t>(part * 30), '#');
    const double eta = done ? elapsed / part - elapsed : 0;
    std::fprintf(stderr, "\r\033[K%s [%s] %lld/%lld  %.0f tokens/s  ETA %.0f s", label_.c_str(), bar.c_str(),
                 static_cast<long long>(done), static_cast<long long>(total_),
                 double(done) / (elapsed + 1e-9), eta);
    std::fflush(stderr);
    shown_ = true;
  }
  void clear() {
    if (shown_) std::fputs("\r\033[K", stderr), std::fflush(stderr);
    shown_ = false;
  }

 private:
  std::string label_;
  std::int64_t total_;
  stopwatch watch_;
  bool terminal_ = isatty(STDERR_FILENO) != 0, shown_ = false;
};

/// The most memory that this process has held, in bytes.
inline std::int64_t peak_memory() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

/// "12.3 MiB".
inline std::string bytes_text(std::int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = double(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) value /= 1024, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
  return text;
}

}  // namespace runner
