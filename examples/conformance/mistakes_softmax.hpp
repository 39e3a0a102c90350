// SPDX-License-Identifier: Apache-2.0
/// Known mistakes of attention itself: candidates, sinks, scale.
#pragma once

#include "scene.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

struct attention_options {
  std::int64_t window, visible_shift = 0;
  double scale;
  bool window_keys = true, entries = true, all_entries = false;
  enum { joint, none, twice, separate, sink_is_a_value } softmax = joint;
};

inline tensor attend_with(const scene& s, const attention_options& o) {
  const tensor &q = *s.input("q"), &local = *s.input("local"), &sinks = *s.input("sinks");
  const tensor *entries = s.input("compressed"), *selected = s.input("selected");
  const std::int64_t rows = q.shape[0], heads = q.shape[1], dim = q.shape[2],
                     ratio = s.parameter<std::int64_t>("ratio");
  const std::int64_t first = s.parameter<std::int64_t>("first_position"),
                     oldest = s.parameter<std::int64_t>("first_local");
  const std::int64_t k = selected ? selected->row() : 0;
  tensor y = q;
  for (std::int64_t t = 0; t < rows; ++t) {
    std::vector<std::pair<const double*, bool>> keys;  // and whether it is an entry
    const std::int64_t position = first + t;
    if (o.window_keys)
      for (std::int64_t j = std::max(oldest, position - o.window + 1); j <= position; ++j)
        keys.emplace_back(&local.values[static_cast<std::size_t>((j - oldest) * dim)], false);
    if (entries && o.entries && ratio) {
      const std::int64_t count = entries->size() / dim;
      const auto entry = [&](std::int64_t j) {
        if (j >= 0 && j < count) keys.emplace_back(&entries->values[static_cast<std::size_t>(j * dim)], true);
      };
      if (selected && !o.all_entries)
        for (std::int64_t j = 0; j < k; ++j) entry(std::int64_t((*selected)[t * k + j]));
      else
        for (std::int64_t j = 0;
             j < count && (o.all_entries || (j + 1) * ratio <= position + 1 + o.visible_shift); ++j)
          entry(j);
    }
    for (std::int64_t h = 0; h < heads; ++h) {
      const double* query = &q.values[static_cast<std::size_t>((t * heads + h) * dim)];
      std::vector<double> score;
      double top = sinks[h];
      for (const auto& key : keys) {
        double dot = 0;
        for (std::int64_t c = 0; c < dim; ++c) dot += query[c] * key.first[c];
        score.push_back(dot * o.scale);
        top = std::max(top, score.back());
      }
      const double sink = std::exp(sinks[h] - top);
      double mass[2] = {0, 0};
      for (std::size_t j = 0; j < keys.size(); ++j) mass[keys[j].second] += std::exp(score[j] - top);
      for (std::int64_t c = 0; c < dim; ++c) {
        double sum[2] = {0, 0};
        for (std::size_t j = 0; j < keys.size(); ++j)
          sum[keys[j].second] += std::exp(score[j] - top) * keys[j].first[c];
        double& out = y[(t * heads + h) * dim + c];
        const double all = mass[0] + mass[1];
        if (o.softmax == attention_options::separate)
          out = sum[0] / (mass[0] + sink) + (mass[1] > 0 ? sum[1] / (mass[1] + sink) : 0);
        else
          out = (sum[0] + sum[1]) / (all + (o.softmax == attention_options::none    ? 0
                                            : o.softmax == attention_options::twice ? 2 * sink
                                                                                    : sink));
      }
    }
  }
  return y;
}

inline void attention_mistakes(scene& s) {
  if (!s.has("q", "local", "sinks") || s.role != "o" || s.input("q")->size() == 0) return;
  const attention_options right{s.parameter<std::int64_t>("window"), 0, s.parameter("scale")};
  const auto add = [&](const char* what, std::vector<std::string> rows, auto change) {
    attention_options o = right;
    change(o);
    s.add(what, std::move(rows), attend_with(s, o));
  };
  using options = attention_options;
  add("the sink is left out", {"33"}, [](auto& o) { o.softmax = options::none; });
  add("the sink counts twice", {"33"}, [](auto& o) { o.softmax = options::twice; });
  add("window and entries have a softmax each", {"33"}, [](auto& o) { o.softmax = options::separate; });
  add("the window is one token too long", {"16"}, [](auto& o) { ++o.window; });
  add("the window is one token too short", {"16"}, [](auto& o) { --o.window; });
  for (const double factor : {4.0, 8.0, 16.0, 32.0, 40.0}) {
    const double mscale = 0.1 * std::log(factor) + 1;
    add("scores are multiplied by YaRN's mscale squared", {"7"},
        [&](auto& o) { o.scale *= mscale * mscale; });
    add("scores are multiplied by YaRN's mscale", {"7"}, [&](auto& o) { o.scale *= mscale; });
  }
  add("scores are not scaled", {"7"}, [](auto& o) { o.scale = 1; });
  add("scores are scaled by 1 / dim", {"7"}, [](auto& o) { o.scale *= o.scale; });
  if (!s.input("compressed")) return;
  add("compressed entries are not attended to", {"16"}, [](auto& o) { o.entries = false; });
  add("entries are attended to, the window is not", {"16"}, [](auto& o) { o.window_keys = false; });
  add("every entry is attended to, complete or not, selected or not", {"16", "25"},
      [](auto& o) { o.all_entries = true; });
  if (s.input("selected")) {
    // Without a selection: every entry that is complete.
    attention_options o = right;
    node all = s.call;
    std::erase_if(all.inputs, [](const auto& i) { return i.first == "selected"; });
    const scene dense(s.vector, all, s.role, s.weights, [&](std::string_view name) { return s.at(name); });
    s.add("the selection is ignored", {"28"}, attend_with(dense, o));
    return;
  }
  add("an entry is visible one token early", {"16"}, [](auto& o) { o.visible_shift = 1; });
  add("an entry is visible one token late", {"16"}, [](auto& o) { o.visible_shift = -1; });
}

}  // namespace conformance
