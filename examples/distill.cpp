// SPDX-License-Identifier: Apache-2.0
// dsv4-distill: DeepSeek-V4's post-training in small. Specialists grow from a base model by supervised
// fine-tuning and GRPO; on-policy distillation merges them into one student.
#include "distill/experiment.hpp"
#include "distill/table_file.hpp"
#include "run/console.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>
#include <thread>

int main(int argc, char** argv) {
  int seeds = 2, threads = 0;
  std::uint64_t first_seed = 0;
  bool quick = false;
  std::string table;
  CLI::App app{
      "Grows specialists in three small tasks by fine-tuning and GRPO, "
      "merges them into one student by on-policy distillation, and prints what each can do."};
  app.option_defaults()->always_capture_default();
  app.add_option("--seeds", seeds, "how often, each time with other weights and problems")
      ->check(CLI::PositiveNumber);
  app.add_option("--first-seed", first_seed, "the first of them");
  app.add_option("--threads", threads, "0: all of the machine's; results do not depend on it")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--table", table, "put the table into this page as well, between its marks");
  app.add_flag("--quick", quick,
               "a few updates in each stage, one seed: whether it runs, not what it can do");
  CLI11_PARSE(app, argc, argv);
  try {
    if (!table.empty()) distill::read_page(table);  // before minutes of work
    if (threads == 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    if (quick) seeds = 1;
    const runner::stopwatch watch;
    distill::experiment all(quick ? distill::quick_recipe() : distill::recipe(), first_seed, seeds, threads,
                            [&](const char* stage, std::size_t done, std::size_t jobs) {
                              std::fprintf(stderr, "%6.0f s  %s: %zu of %zu\n", watch.seconds(), stage, done,
                                           jobs);
                            });
    const std::string text = distill::markdown(all.run());
    std::cout << text;
    if (!table.empty()) distill::write_table(table, text);
  } catch (const std::exception& failure) {
    return runner::failed("dsv4-distill", failure);
  }
}
