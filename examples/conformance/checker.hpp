// SPDX-License-Identifier: Apache-2.0
/// Compares a dump with a suite: where, in the order of execution, does it leave the path?
#pragma once

#include "choices.hpp"
#include "mistakes.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conformance {

/// The first result that is wrong.
struct divergence {
  std::string op, tensor, layer;  ///< layer: "layers.2", "mtp.0", or empty
  std::string place;              ///< "token 3, stream 1, channel 7"
  double expected = 0, found = 0;
  double worst = 0, tolerance = 0;      ///< in units of the largest expected magnitude
  std::string shape_problem;            ///< instead of all numbers
  std::string mistake;                  ///< what is known to give this, or empty
  std::vector<std::string> rows;        ///< of the list of reported bugs: of the mistake, or of the op
  std::vector<std::string> unseen;      ///< results before it that the dump lacks: it may be one of these
  std::vector<std::string> unseen_ops;  ///< their ops
};

struct report {
  std::string vector, run;
  std::string file;  ///< of the dump
  int compared = 0, missing = 0, unjudged = 0;
  double closest = 0;  ///< the largest difference over its tolerance
  std::string closest_tensor;
  std::vector<std::string> notes;
  std::optional<divergence> first;
};

class checker {
 public:
  checker(fs::path folder, precision p)
      : folder_(std::move(folder)), suite_(read_suite(folder_)), precision_(p) {}
  const suite& vectors() const { return suite_; }

  /// All files of `dump` that belong to a vector.
  std::vector<report> check(const fs::path& dump) const {
    std::vector<report> all;
    const auto add = [&](const test_vector& v, const model_run* run, const fs::path& file) {
      if (!fs::exists(dump / file)) return;
      all.push_back(check(v, run, read_tensors(dump / file)));
      all.back().file = file.generic_string();
    };
    for (const test_vector& v : suite_.vectors) {
      if (v.runs.empty()) add(v, nullptr, v.file);
      for (const model_run& run : v.runs)
        add(v, &run, fs::path(v.file).parent_path() / (run.name + ".safetensors"));
    }
    return all;
  }

  /// The files that a dump, if it says anything about them, does not list as refused.
  std::vector<refused_file> accepted(const fs::path& dump) const {
    std::ifstream in(dump / "refused.json");
    if (!in) return {};
    const auto listed = json::parse(in, nullptr, false);
    if (!listed.is_array())
      throw dsv4::format_error((dump / "refused.json").string(), "list", "a JSON array of file names",
                               "other text");
    std::vector<refused_file> all;
    for (const refused_file& r : suite_.refuse)
      if (std::find(listed.begin(), listed.end(), json(r.file)) == listed.end()) all.push_back(r);
    return all;
  }

  /// One dump of one vector.
  report check(const test_vector& v, const model_run* run, const tensor_map& dump) const {
    report r{v.name, run ? run->name : "", {}, 0, 0, 0, 0, {}, {}, {}};
    const tensor_map given = read_tensors(folder_ / v.file);
    const std::string prefix = run ? run->of : "";
    std::set<std::string, std::less<>> known, seen;
    for (const node& n : v.nodes)
      for (const auto& [role, name] : n.outputs) {
        if (!name.starts_with(prefix) || (prefix.empty() && is_of_other_run(v, name))) continue;
        const std::string own = name.substr(prefix.size());
        known.insert(own);
        const auto at = dump.find(own);
        if (at == dump.end()) {
          ++r.missing;
        } else if (!r.first) {
          compare(v, n, role, name, at->second, dump, given, seen, prefix, r);
          seen.insert(name);
        }
      }
    for (const auto& [name, t] : dump)
      if (!known.contains(name) && !given.contains(prefix + name))
        r.notes.push_back("\"" + name + "\" is no tensor of this vector");
    return r;
  }

 private:
  static bool is_of_other_run(const test_vector& v, const std::string& name) {
    return std::any_of(v.runs.begin(), v.runs.end(),
                       [&](const model_run& r) { return !r.of.empty() && name.starts_with(r.of); });
  }

  void compare(const test_vector& v, const node& n, const std::string& role, const std::string& name,
               const tensor& raw, const tensor_map& dump, const tensor_map& given,
               const std::set<std::string, std::less<>>& seen, const std::string& prefix, report& r) const {
    const expectation& e = *v.find(name);
    tensor want = given.at(name), found = raw;
    if (!whole_rows(want, found)) {
      divergence& d = r.first.emplace(start(n, name, seen, v));
      d.shape_problem = "expected " + shape_text(want) + ", found " + shape_text(found);
      d.rows = rows_of(n.op, name);
      return;
    }
    if (found.size() < want.size()) {
      r.notes.push_back(name + ": the first " + std::to_string(found.shape[0]) + " of " +
                        std::to_string(want.shape[0]) + " rows");
      want.values.resize(found.values.size()), want.shape = found.shape;
    }
    const double tolerance = e.tolerance[std::size_t(precision_)];
    if (std::isnan(tolerance)) {
      ++r.unjudged;
      return;
    }
    if (e.compare == comparison::choice) want = in_order(want), found = in_order(found);
    if (e.compare == comparison::slots) found = by_choice(n, found, dump, given, prefix);
    ++r.compared;
    const double unit = e.largest > 0 ? e.largest : 1;
    std::int64_t first = -1;
    double worst = 0;
    for (std::int64_t i = 0; i < want.size(); ++i) {
      const double d = difference(want[i], found[i], e.compare, unit);
      if (d > tolerance && first < 0) first = i;
      worst = std::max(worst, d);
    }
    if (first < 0) {
      if (tolerance > 0 && worst / tolerance > r.closest)
        r.closest = worst / tolerance, r.closest_tensor = name;
      return;
    }
    if (e.compare == comparison::choice && !v.ties && near_tie(v, n, role, want, found, given, r)) return;
    divergence& d = r.first.emplace(start(n, name, seen, v));
    d.expected = want[first], d.found = found[first], d.worst = worst, d.tolerance = tolerance;
    d.place = place(e.axes, want, first);
    explain(v, n, role, name, found, given, tolerance, e, d);
  }

  static divergence start(const node& n, const std::string& name,
                          const std::set<std::string, std::less<>>& seen, const test_vector& v) {
    divergence d;
    d.op = n.op, d.tensor = name;
    const std::string own = name.starts_with("grad.") ? name.substr(5) : name;
    if (own.starts_with("layers.") || own.starts_with("mtp."))
      d.layer = own.substr(0, own.find('.', own.find('.') + 1));
    // Backwards through results that the dump lacks.
    std::set<std::string, std::less<>> wanted;
    for (const auto& [role, input] : n.inputs) wanted.insert(input);
    auto at = std::find_if(v.nodes.begin(), v.nodes.end(), [&](const node& x) { return &x == &n; });
    while (at != v.nodes.begin()) {
      --at;
      const bool needed = std::any_of(at->outputs.begin(), at->outputs.end(), [&](const auto& o) {
        return wanted.contains(o.second) && !seen.contains(o.second);
      });
      if (!needed || at->op == "rope_frequencies") continue;
      d.unseen.insert(d.unseen.begin(), at->outputs[0].second),
          d.unseen_ops.insert(d.unseen_ops.begin(), at->op);
      for (const auto& [role, input] : at->inputs) wanted.insert(input);
    }
    return d;
  }

  /// Shapes may be cut into axes differently, and a dump may stop after some rows.
  static bool whole_rows(const tensor& want, tensor& found) {
    if (found.size() == want.size()) {
      found.shape = want.shape;
      return true;
    }
    const std::int64_t row = want.row();
    if (want.shape.empty() || found.size() > want.size() || row == 0 || found.size() % row != 0) return false;
    found.shape = want.shape;
    found.shape[0] = found.size() / row;
    return true;
  }

  static double difference(double want, double found, comparison how, double unit) {
    if (how == comparison::scaled && std::isnan(want)) return 0;  // of no meaning
    if (want == found || (std::isnan(want) && std::isnan(found))) return 0;
    if (how == comparison::exact || how == comparison::choice || !std::isfinite(found)) return INFINITY;
    const double d = std::abs(want - found);
    // Below float's normal numbers a relative difference says nothing, unless all is lost.
    if (how == comparison::relative)
      return std::abs(want) < 0x1p-126 && found != 0 ? d / 0x1p-126 : d / std::abs(want);
    return d / unit;
  }

  /// `weights` with its slots in the order in which the suite has the choice.
  static tensor by_choice(const node& n, tensor found, const tensor_map& dump, const tensor_map& given,
                          const std::string& prefix) {
    const std::string_view name = n.output("experts");
    const auto theirs = dump.find(name.substr(prefix.size()));
    const auto ours = given.find(name);
    if (theirs == dump.end() || ours == given.end() || theirs->second.size() < found.size()) return found;
    const std::int64_t k = found.row();
    const tensor weights = found;
    for (std::int64_t i = 0; i < found.size(); ++i)
      for (std::int64_t j = i / k * k; j < i / k * k + k; ++j)
        if (theirs->second[j] == ours->second[i]) found[i] = weights[j];
    return found;
  }

  /// Whether another choice in a row is one between candidates that rounding may have swapped. What follows
  /// from it is not judged then.
  bool near_tie(const test_vector& v, const node& n, const std::string& role, const tensor& want,
                const tensor& found, const tensor_map& given, report& r) const {
    const auto keys = keys_of_choice(n, [&](std::string_view name) {
      const auto at = given.find(name);
      return at == given.end() ? nullptr : &at->second;
    });
    if (!keys) return false;
    double largest = 0;
    for (double x : keys->values) largest = std::isnan(x) ? largest : std::max(largest, std::abs(x));
    const std::string_view source = n.op == "route" ? n.input("logits") : n.output("scores");
    const expectation* e = v.find(source);
    const double slack = (e ? e->tolerance[std::size_t(precision_)] : 0x1p-20) * largest;
    const std::int64_t k = want.row();
    for (std::int64_t row = 0; row < want.shape[0]; ++row) {
      if (std::equal(want.values.begin() + row * k, want.values.begin() + (row + 1) * k,
                     found.values.begin() + row * k))
        continue;
      const auto key = [&](double i) {
        return i >= 0 && i < double(keys->row()) ? (*keys)[row * keys->row() + std::int64_t(i)] : NAN;
      };
      double lowest = INFINITY, missed = INFINITY;
      for (std::int64_t j = 0; j < k; ++j) {
        const double f = key(found[row * k + j]);
        if (std::isnan(f)) return false;  // empty, or no candidate
        lowest = std::min(lowest, f), missed = std::min(missed, key(want[row * k + j]));
      }
      if (!(missed - lowest <= 2 * slack)) return false;
    }
    r.notes.push_back(
        std::string(n.output(role)) +
        ": another choice at a near tie, which rounding may decide; what follows from it is not judged");
    r.first.reset();
    return true;
  }

  static std::string shape_text(const tensor& t) {
    std::string text = "[";
    for (std::size_t i = 0; i < t.shape.size(); ++i) text += (i ? ", " : "") + std::to_string(t.shape[i]);
    return text + "]";
  }
  static std::string place(const std::string& axes, const tensor& t, std::int64_t i) {
    std::istringstream names(axes);
    std::string text, axis;
    std::int64_t inner = t.size();
    for (std::int64_t extent : t.shape) {
      inner /= std::max<std::int64_t>(extent, 1);
      if (!(names >> axis)) axis = "index";
      text += (text.empty() ? "" : ", ") + axis + " " + std::to_string(i / inner % extent);
    }
    return text;
  }

  void explain(const test_vector& v, const node& n, const std::string& role, const std::string& name,
               const tensor& found, const tensor_map& given, double tolerance, const expectation& e,
               divergence& d) const {
    d.rows = rows_of(n.op, name);
    for (const std::string& op : d.unseen_ops)
      for (const std::string& row : rows_of(op, ""))
        if (std::find(d.rows.begin(), d.rows.end(), row) == d.rows.end()) d.rows.push_back(row);
    if (!std::isfinite(d.found)) d.mistake = "a value is not finite";
    if (found.size() != given.at(name).size()) return;
    stored_weights weights(folder_ / fs::path(v.file).parent_path() / "model.safetensors");
    std::map<std::string, std::optional<tensor>, std::less<>> decoded;
    scene s(v, n, role, weights, [&](std::string_view wanted) -> const tensor* {
      if (const auto at = given.find(wanted); at != given.end()) return &at->second;
      auto& slot = decoded.try_emplace(std::string(wanted)).first->second;
      if (!slot) slot = weights.find(wanted);
      return slot ? &*slot : nullptr;
    });
    const double unit = e.compare == comparison::relative ? std::abs(d.expected)
                        : e.largest > 0                   ? e.largest
                                                          : 1;
    if (auto m = recognise(s, found, tolerance, unit, e.compare == comparison::choice)) {
      d.mistake = m->what;
      if (!m->rows.empty()) d.rows = m->rows;
    }
  }

  fs::path folder_;
  suite suite_;
  precision precision_;
};

}  // namespace conformance
