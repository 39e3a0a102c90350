// SPDX-License-Identifier: Apache-2.0
/// What each model can do, over all seeds, as a table.
#pragma once

#include "tasks.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace distill {

/// Mean and standard deviation (over n - 1) of a few numbers, "0.52 ± 0.03"; of one number itself alone.
inline std::string spread(const std::vector<double>& values, int decimals) {
  double mean = 0, squares = 0;
  for (const double v : values) mean += v / double(values.size());
  for (const double v : values) squares += (v - mean) * (v - mean);
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, mean);
  if (values.size() == 1) return text;
  const std::string all = text;
  std::snprintf(text, sizeof text, " ± %.*f", decimals, std::sqrt(squares / double(values.size() - 1)));
  return all + text;
}

struct score {
  std::array<double, tasks.size()> accuracy = {};  ///< of answers sampled at temperature 1
  double greedy = 0;                               ///< mean over the tasks, at temperature 0
  std::optional<double> divergence;                ///< from the specialists

  double mean() const {
    double sum = 0;
    for (const double a : accuracy) sum += a / double(accuracy.size());
    return sum;
  }
};

/// One model of the table: a score for each seed.
struct table_row {
  std::string name;
  std::vector<score> scores;

  /// value(score) of every seed.
  template <class F>
  std::string over_seeds(const F& value, int decimals) const {
    std::vector<double> values;
    for (const score& s : scores) values.push_back(value(s));
    return spread(values, decimals);
  }
};

/// Shares are in percent.
inline std::string markdown(const std::vector<table_row>& rows) {
  std::string text = "| model |", line = "|---|";
  for (const task& t : tasks) text += " " + std::string(t.name) + " |", line += "---|";
  text += " mean | mean, greedy | KL to the specialists |\n" + line + "---|---|---|\n";
  for (const table_row& row : rows) {
    text += "| " + row.name + " | ";
    for (std::size_t t = 0; t < tasks.size(); ++t)
      text += row.over_seeds([t](const score& s) { return 100 * s.accuracy[t]; }, 1) + " | ";
    text += row.over_seeds([](const score& s) { return 100 * s.mean(); }, 1) + " | ";
    text += row.over_seeds([](const score& s) { return 100 * s.greedy; }, 1) + " | ";
    if (row.scores.front().divergence)
      text += row.over_seeds([](const score& s) { return *s.divergence; }, 3) + " ";
    text += "|\n";
  }
  return text;
}

}  // namespace distill
