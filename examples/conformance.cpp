// SPDX-License-Identifier: Apache-2.0
// dsv4-conformance: makes the conformance suite, checks an engine's dump against it, writes a dump of our
// own.
#include "conformance/checker.hpp"
#include "conformance/commands.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <iostream>

namespace {

using namespace conformance;

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const auto& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

void print(const report& r) {
  std::cout << r.vector << (r.run.empty() ? "" : ", " + r.run) << ": ";
  if (r.first) {
    const divergence& d = *r.first;
    std::cout << "leaves the path at " << d.tensor << " (op " << d.op
              << (d.layer.empty() ? "" : ", " + d.layer) << ")\n";
    if (!d.shape_problem.empty())
      std::cout << "  shape: " << d.shape_problem << '\n';
    else
      std::printf(
          "  %s: expected %.9g, found %.9g\n  largest difference %.3g, tolerance %.3g, of the largest "
          "value\n",
          d.place.c_str(), d.expected, d.found, d.worst, d.tolerance),
          std::fflush(stdout);
    if (!d.mistake.empty()) std::cout << "  looks like this: " << d.mistake << '\n';
    if (!d.rows.empty()) std::cout << "  rows of docs/reported-bugs.md: " << joined(d.rows) << '\n';
    if (!d.unseen.empty())
      std::cout << "  or before it, in results that the dump lacks: " << joined(d.unseen) << '\n';
  } else {
    std::cout << r.compared << " tensors agree";
    if (r.closest > 0)
      std::printf(", at most %.2g of the tolerance (%s)", r.closest, r.closest_tensor.c_str()),
          std::fflush(stdout);
    std::cout << '\n';
  }
  if (r.missing) std::cout << "  " << r.missing << " tensors are not in the dump\n";
  if (r.unjudged) std::cout << "  " << r.unjudged << " tensors are not judged in this precision\n";
  for (const auto& note : r.notes) std::cout << "  " << note << '\n';
}

int check(const fs::path& suite, const fs::path& dump, precision p, bool quiet) {
  const checker c(suite, p);
  const auto reports = c.check(dump);
  if (reports.empty()) throw dsv4::io_error(dump.string(), "check", "no file here belongs to a vector");
  int wrong = 0, tensors = 0;
  for (const report& r : reports) {
    if (!quiet || r.first) print(r);
    wrong += r.first.has_value(), tensors += r.compared;
  }
  for (const refused_file& r : c.accepted(dump))
    std::cout << r.file << ": was not refused; " << r.why << " (rows " << joined(r.rows) << ")\n", ++wrong;
  int strangers = 0;  // misspelt, perhaps
  for (const auto& entry : fs::recursive_directory_iterator(dump)) {
    const std::string file = fs::relative(entry.path(), dump).generic_string();
    if (entry.path().extension() == ".safetensors" && !std::ranges::count(reports, file, &report::file))
      std::cout << file << ": belongs to no vector of the suite\n", ++strangers;
  }
  std::cout << reports.size() << " runs and vectors, " << tensors << " tensors compared, " << wrong
            << " leave the path\n";
  return wrong || strangers ? 1 : 0;
}

/// Whether two dumps have the same files with the same bytes.
int same(const fs::path& a, const fs::path& b) {
  int files = 0, differences = 0;
  for (const auto& entry : fs::recursive_directory_iterator(a)) {
    if (entry.path().extension() != ".safetensors") continue;
    const fs::path name = fs::relative(entry.path(), a);
    ++files;
    if (!fs::exists(b / name)) {
      std::cout << name.string() << ": only in " << a.string() << '\n', ++differences;
      continue;
    }
    const dsv4::io::safetensors_file one(entry.path()), two(b / name);
    for (const auto& t : one.tensors()) {
      const auto* other = two.find(t.name);
      const auto x = one.bytes(t);
      if (other && std::ranges::equal(x, two.bytes(*other))) continue;
      std::cout << name.string() << ": " << t.name << (other ? " differs" : " is missing") << '\n',
          ++differences;
    }
  }
  if (files == 0) throw dsv4::io_error(a.string(), "compare", "no dump here");
  std::cout << files << " files, " << differences << " differences\n";
  return differences ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "The conformance suite of DeepSeek-V4 building blocks; docs/conformance.md describes its files."};
  app.require_subcommand(1);
  app.set_help_flag();
  app.set_help_all_flag("-h,--help", "print this help");
  std::string suite, first, second;
  std::map<std::string, precision> precisions{
      {"f64", precision::f64}, {"f32", precision::f32}, {"bf16", precision::bf16}};
  precision p = precision::f32;
  bool quiet = false;
  int threads = 0;
  auto* make = app.add_subcommand("make", "write the suite into a folder");
  make->add_option("suite", suite, "folder")->required();
  auto* check_ = app.add_subcommand("check", "compare an engine's dump with the suite");
  check_->add_option("suite", suite, "folder of the suite")->required();
  check_->add_option("dump", first, "folder of the dump")->required();
  check_->add_option("--precision", p, "what the engine computes in")
      ->transform(CLI::CheckedTransformer(precisions, CLI::ignore_case)
                      .description("f64, f32 (if not given) or bf16"));
  check_->add_flag("-q,--quiet", quiet, "print only what is wrong");
  auto* dump = app.add_subcommand("dump", "write what exec::cpu computes in float from the suite");
  dump->add_option("suite", suite, "folder of the suite")->required();
  dump->add_option("dump", first, "folder to write")->required();
  dump->add_option("--threads", threads, "0: all of the machine's")->check(CLI::NonNegativeNumber);
  auto* same_ = app.add_subcommand("same", "compare two dumps bit by bit: runs, thread counts, batches");
  same_->add_option("first", first, "a dump")->required();
  same_->add_option("second", second, "another")->required();
  CLI11_PARSE(app, argc, argv);
  try {
    if (*make) make_suite_in(suite);
    if (*check_) return check(suite, first, p, quiet);
    if (*dump) dump_float(suite, first, threads);
    if (*same_) return same(first, second);
  } catch (const std::exception& failure) {
    std::cerr << "dsv4-conformance: " << failure.what() << '\n';
    return 2;
  }
}
