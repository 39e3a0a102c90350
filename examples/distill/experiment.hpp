// SPDX-License-Identifier: Apache-2.0
/// All stages for several seeds, as jobs on a few threads.
#pragma once

#include "jobs.hpp"
#include "results.hpp"
#include "stages.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace distill {

/// All models of one seed.
struct family {
  std::uint64_t seed = 0;
  model base, student, on_policy, imitator, mean;
  specialists tuned, reinforced;
};

/// A model of the table: where it is, and whether it is compared with the specialists.
struct entry {
  std::string name;
  bool merged;
  std::function<trainer&(family&)> of;
};

inline std::vector<entry> entries() {
  std::vector<entry> all{{"base: the student before", true, [](family& f) -> trainer& { return *f.base; }}};
  for (const bool tuned : {true, false})
    for (std::size_t t = 0; t < tasks.size(); ++t)
      all.push_back({"specialist in " + std::string(tasks[t].name) + (tuned ? ", fine-tuned" : ", then GRPO"),
                     false,
                     [tuned, t](family& f) -> trainer& { return tuned ? *f.tuned[t] : *f.reinforced[t]; }});
  all.push_back(
      {"**student after on-policy distillation**", true, [](family& f) -> trainer& { return *f.student; }});
  all.push_back(
      {"student of on-policy distillation alone", true, [](family& f) -> trainer& { return *f.on_policy; }});
  all.push_back({"student fine-tuned on the specialists' answers", true,
                 [](family& f) -> trainer& { return *f.imitator; }});
  all.push_back({"mean of the specialists' weights", true, [](family& f) -> trainer& { return *f.mean; }});
  return all;
}

class experiment {
 public:
  /// `progress(stage, done, jobs)` is called after every job, by one thread at a time.
  using observer = std::function<void(const char*, std::size_t, std::size_t)>;

  experiment(const recipe& r, std::uint64_t first_seed, int seeds, int threads, observer progress)
      : recipe_(r),
        threads_(threads),
        progress_(std::move(progress)),
        workers_(static_cast<std::size_t>(threads)) {
    for (int i = 0; i < seeds; ++i) {
      families_.emplace_back();
      families_.back().seed = first_seed + static_cast<std::uint64_t>(i);
    }
  }

  std::vector<table_row> run() {
    for_each_family("base models", [&](family& f, auto& jobs) {
      jobs.push_back([&](worker& on) { f.base = make_base(on, recipe_, f.seed); });
    });
    for_each_family("specialists", [&](family& f, auto& jobs) {
      for (std::size_t t = 0; t < tasks.size(); ++t)
        jobs.push_back([&, t](worker& on) {
          f.tuned[t] = tune(on, recipe_, f.seed, t, *f.base);
          f.reinforced[t] = reinforce(on, recipe_, f.seed, tasks[t], *f.tuned[t]);
        });
    });
    for_each_family("students", [&](family& f, auto& jobs) {
      const auto student = [&](model& to, std::int64_t imitated) {
        jobs.push_back([this, &f, &to, imitated](worker& on) {
          to = study(on, recipe_, f.seed, *f.base, f.reinforced, imitated);
        });
      };
      student(f.student, recipe_.imitated_steps);
      student(f.on_policy, 0);
      student(f.imitator, recipe_.student_steps);
      jobs.push_back([&](worker&) { f.mean = average(f.reinforced); });
    });
    const std::vector<entry> models = entries();
    std::vector<table_row> rows;
    for (const entry& e : models) rows.push_back({e.name, std::vector<score>(families_.size())});
    for_each_family("tests", [&](family& f, auto& jobs) {
      const auto number = static_cast<std::size_t>(&f - families_.data());
      for (std::size_t i = 0; i < models.size(); ++i)
        jobs.push_back([&, i, number](worker& on) { rows[i].scores[number] = test(on, f, models[i]); });
    });
    return rows;
  }

 private:
  score test(worker& on, family& f, const entry& e) const {
    score s;
    trainer& m = e.of(f);
    for (std::size_t t = 0; t < tasks.size(); ++t) {
      s.accuracy[t] = accuracy(on, recipe_, f.seed, tasks[t], 1, m);
      s.greedy += accuracy(on, recipe_, f.seed, tasks[t], 0, m) / double(tasks.size());
    }
    if (e.merged) s.divergence = divergence(on, recipe_, f.seed, f.reinforced, m);
    return s;
  }

  /// Runs the jobs that `list` has for each family.
  template <class List>
  void for_each_family(const char* stage, const List& list) {
    std::vector<std::function<void(worker&)>> jobs;
    for (family& f : families_) list(f, jobs);
    run_jobs(
        threads_, jobs.size(), [&](std::size_t job, std::size_t thread) { jobs[job](workers_[thread]); },
        [&](std::size_t done) { progress_(stage, done, jobs.size()); });
  }

  recipe recipe_;
  int threads_;
  observer progress_;
  std::vector<worker> workers_;
  std::vector<family> families_;
};

}  // namespace distill
