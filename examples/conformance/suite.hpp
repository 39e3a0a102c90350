// SPDX-License-Identifier: Apache-2.0
/// What a suite consists of: vectors, their ops in order of execution, and what is expected of each output.
#pragma once

#include "tensors.hpp"
#include <dsv4/core/error.hpp>

#include <nlohmann/json.hpp>

#include <array>
#include <cmath>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conformance {

using json = nlohmann::ordered_json;

/// Raised whenever a value, a name or a rule of the suite changes.
inline constexpr std::string_view suite_version = "1.0.3";

/// What an engine computes and stores intermediate values in.
enum class precision { f64, f32, bf16 };
inline constexpr std::array<std::string_view, 3> precision_names{"F64", "F32", "BF16"};

/// How a tensor is compared.
enum class comparison {
  scaled,    ///< |found - expected| <= tolerance * largest expected magnitude
  relative,  ///< |found - expected| <= tolerance * |expected|
  exact,     ///< equal: codes, counts, tokens
  choice,    ///< every row is a set of numbers, -1 is none
  slots,     ///< as scaled, each row in the order of the choice that it belongs to
};
inline constexpr std::array<std::string_view, 5> comparison_names{"scaled", "relative", "exact", "choice",
                                                                  "slots"};

struct expectation {
  std::string axes;  ///< what the axes count, separated by spaces
  comparison compare = comparison::scaled;
  double largest = 0;
  std::array<double, 3> tolerance{};  ///< by precision; NaN: not to be judged
};

/// One call of an op. Roles are the names of the op's arguments.
struct node {
  using roles = std::vector<std::pair<std::string, std::string>>;
  std::string op;
  roles inputs, outputs;  ///< role and tensor
  json parameters = json::object();

  /// The tensor in a role, or an empty name.
  static std::string_view find(const roles& all, std::string_view role) {
    for (const auto& [r, name] : all)
      if (r == role) return name;
    return {};
  }
  std::string_view input(std::string_view role) const { return find(inputs, role); }
  std::string_view output(std::string_view role) const { return find(outputs, role); }
};

/// A way to run a model on the same tokens. Dumps of it lie in files of its name.
struct model_run {
  std::string name, how;
  std::vector<std::int64_t> chunks;  ///< tokens per call
  std::string of;                    ///< what its tensors' names begin with in the suite
};

/// One test vector: an op with its inputs and outputs, or a model with all of its ops.
struct test_vector {
  std::string name, title, file;
  std::vector<std::string> rows;  ///< of the list of reported bugs
  bool ties = false;              ///< whether it is about ties: then none is excused
  std::vector<model_run> runs;    ///< of a model
  std::vector<node> nodes;
  std::vector<std::pair<std::string, expectation>> expected;

  const expectation* find(std::string_view tensor) const {
    for (const auto& [name_, e] : expected)
      if (name_ == tensor) return &e;
    return nullptr;
  }
};

/// A file that a reader must not accept.
struct refused_file {
  std::string file, why;
  std::vector<std::string> rows;
};

struct suite {
  std::string version{suite_version};
  std::vector<test_vector> vectors;
  std::vector<refused_file> refuse;
};

inline json to_json(const node::roles& roles) {
  json out = json::object();
  for (const auto& [role, name] : roles) out[role] = name;
  return out;
}
inline node::roles roles_from(const json& j) {
  node::roles roles;
  for (const auto& [role, name] : j.items()) roles.emplace_back(role, name);
  return roles;
}

inline json to_json(const test_vector& v) {
  json out;
  out["name"] = v.name, out["title"] = v.title, out["rows"] = v.rows, out["file"] = v.file;
  if (v.ties) out["ties"] = true;
  for (const auto& r : v.runs) {
    out["runs"].push_back({{"name", r.name}, {"how", r.how}, {"tensors", r.of}});
    if (!r.chunks.empty()) out["runs"].back()["chunks"] = r.chunks;
  }
  for (const auto& n : v.nodes) {
    json& j = out["nodes"].emplace_back(json{{"op", n.op}});
    if (!n.parameters.empty()) j["parameters"] = n.parameters;
    j["inputs"] = to_json(n.inputs), j["outputs"] = to_json(n.outputs);
  }
  for (const auto& [name, e] : v.expected) {
    json& j =
        out["expected"][name] = {{"axes", e.axes}, {"compare", comparison_names[std::size_t(e.compare)]}};
    if (e.compare != comparison::exact && e.compare != comparison::choice) j["largest"] = e.largest;
    for (std::size_t p = 0; p < 3; ++p)
      j["tolerance"][std::string(precision_names[p])] =
          std::isnan(e.tolerance[p]) ? json() : json(e.tolerance[p]);
  }
  return out;
}

inline test_vector vector_from(const json& j) {
  test_vector v{j.at("name"), j.at("title"), j.at("file"), j.at("rows"), j.value("ties", false), {}, {}, {}};
  if (j.contains("runs"))
    for (const json& r : j.at("runs"))
      v.runs.push_back({r.at("name"), r.at("how"),
                        r.contains("chunks") ? r.at("chunks").get<std::vector<std::int64_t>>()
                                             : std::vector<std::int64_t>{},
                        r.at("tensors")});
  for (const json& n : j.at("nodes"))
    v.nodes.push_back({n.at("op"), roles_from(n.at("inputs")), roles_from(n.at("outputs")),
                       n.contains("parameters") ? n.at("parameters") : json::object()});
  for (const auto& [name, e] : j.at("expected").items()) {
    expectation x{e.at("axes"), {}, 0, {}};
    const std::string how = e.at("compare");
    const auto at = std::find(comparison_names.begin(), comparison_names.end(), how);
    if (at == comparison_names.end()) throw dsv4::format_error("manifest.json", name, "a comparison", how);
    x.compare = static_cast<comparison>(at - comparison_names.begin());
    x.largest = e.value("largest", 0.0);
    for (std::size_t p = 0; p < 3; ++p) {
      const json& t = e.at("tolerance").at(std::string(precision_names[p]));
      x.tolerance[p] = t.is_null() ? NAN : t.get<double>();
    }
    v.expected.emplace_back(name, x);
  }
  return v;
}

/// One line for every op and every expected tensor.
inline std::string manifest_text(const suite& s) {
  std::string text =
      json{{"suite", "dsv4-conformance"}, {"version", s.version}, {"model_type", "deepseek_v4"}}.dump();
  text.back() = ',';
  text += "\n\"vectors\":[";
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    json head = to_json(s.vectors[i]);
    const json nodes = head["nodes"], expected = head["expected"];
    head.erase("nodes"), head.erase("expected");
    std::string own = head.dump();
    own.back() = ',';
    text += (i ? ",\n" : "\n") + own + "\n\"nodes\":[";
    for (std::size_t n = 0; n < nodes.size(); ++n) text += (n ? ",\n" : "\n") + nodes[n].dump();
    text += "],\n\"expected\":{";
    bool first = true;
    for (const auto& [name, e] : expected.items())
      text += std::exchange(first, false) ? "\n" + json(name).dump() + ":" + e.dump()
                                          : ",\n" + json(name).dump() + ":" + e.dump();
    text += "}}";
  }
  text += "],\n\"refuse\":[";
  for (std::size_t i = 0; i < s.refuse.size(); ++i)
    text += (i ? ",\n" : "\n") +
            json{{"file", s.refuse[i].file}, {"why", s.refuse[i].why}, {"rows", s.refuse[i].rows}}.dump();
  return text + "]}\n";
}

inline suite read_suite(const fs::path& folder) {
  const fs::path path = folder / "manifest.json";
  std::ifstream in(path);
  if (!in) throw dsv4::io_error(path.string(), "open", "no suite here");
  try {
    const json j = json::parse(in);
    suite s{j.at("version"), {}, {}};
    if (s.version.substr(0, s.version.find('.')) != suite_version.substr(0, suite_version.find('.')))
      throw dsv4::format_error(path.string(), "version", std::string(suite_version), s.version);
    for (const json& v : j.at("vectors")) s.vectors.push_back(vector_from(v));
    for (const json& r : j.at("refuse")) s.refuse.push_back({r.at("file"), r.at("why"), r.at("rows")});
    return s;
  } catch (const nlohmann::json::exception& failure) {
    throw dsv4::format_error(path.string(), "manifest", "what docs/conformance.md describes", failure.what());
  }
}

}  // namespace conformance
