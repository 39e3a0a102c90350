// SPDX-License-Identifier: Apache-2.0
/// From recordings to the files of a suite: rounding that is the same on every machine, and tolerances.
#pragma once

#include "choices.hpp"
#include "mistakes_formats.hpp"
#include "recorder.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

/// How close to the middle between two written numbers a computed one may lie, in their distance. Compilers
/// and mathematical libraries move a result of ours by less: it is then written alike everywhere.
inline constexpr double least_margin = 1e-6;

/// Rounds a computed tensor to what is written: multiples of 2^-24 times the power of two above its largest
/// magnitude (relative: floats). Returns that magnitude. Throws contract_error where a value is too close to
/// the middle.
inline double round_for_file(const std::string& name, comparison how, tensor& t) {
  if (t.type != dtype::f32) return 0;
  double largest = 0;
  for (double v : t.values)
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  int exponent = 0;
  const bool power = std::frexp(largest, &exponent) == 0.5;
  const double step = largest == 0 ? 1 : std::ldexp(1.0, exponent - (power ? 1 : 0) - 24);
  double rounded_largest = 0;
  for (double& v : t.values) {
    if (!std::isfinite(v) || v == 0) continue;
    double unit = step;
    if (how == comparison::relative) {
      int e;
      std::frexp(v, &e);
      unit = std::ldexp(1.0, std::max(e - 24, -149));
    }
    const double in_units = v / unit, below = std::floor(in_units);
    // In the very middle: a sum of few bits, which is exact everywhere.
    if (const double off = std::abs(in_units - below - 0.5); off != 0 && off < least_margin)
      throw dsv4::contract_error("make", name,
                                 "values that round alike on every machine: choose other inputs",
                                 std::to_string(in_units - below) + " of a step");
    v = std::nearbyint(in_units) * unit;
    rounded_largest = std::max(rounded_largest, std::abs(v));
  }
  return rounded_largest;
}

/// The largest difference of two tensors, as `how` measures it; infinity where a choice or a code differs.
inline double deviation(const tensor& a, const tensor& b, comparison how, double largest) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    const double d = std::abs(a[i] - b[i]);
    if (d == 0) continue;
    if (how == comparison::exact || how == comparison::choice) return INFINITY;
    const double unit = how == comparison::relative ? std::abs(a[i]) : largest;
    worst = std::max(worst, unit > 0 ? d / unit : INFINITY);
  }
  return worst;
}

inline double power_of_two_above(double x) { return std::exp2(std::ceil(std::log2(x))); }

/// Choices of a vector that is not about ties are at least so clear, in units of the largest key: an engine
/// in float makes the same.
inline constexpr double least_gap = 0x1p-14;

inline void expect_clear_choices(const test_vector& v, const tensor_map& tensors) {
  const auto at = [&](std::string_view name) -> const tensor* {
    const auto found = tensors.find(name);
    return found == tensors.end() ? nullptr : &found->second;
  };
  for (const node& n : v.nodes)
    if (const auto keys = keys_of_choice(n, at)) {
      double largest = 0;
      for (double key : keys->values) largest = std::isnan(key) ? largest : std::max(largest, std::abs(key));
      for (std::int64_t row = 0; keys->size() && row < keys->shape[0]; ++row)
        if (const double g = gap(*keys, row, n.parameters.at("k")); g < least_gap * largest)
          throw dsv4::contract_error("make", v.name + ", " + n.outputs[0].second,
                                     "clear choices: choose other inputs",
                                     "a gap of " + std::to_string(g) + " in row " + std::to_string(row));
    }
}

/// Rounding the inputs for the file has moved none of them over a border of a small format: who computes a
/// node from the suite's own tensors gets the same codes.
inline void expect_same_codes(const test_vector& v, const tensor_map& tensors) {
  for (const node& n : v.nodes) {
    const bool codes = n.op == "quantise";
    if (!codes && n.op != "round_trip") continue;
    tensor x = tensors.at(std::string(n.input("x")));
    const std::string format = n.parameters.at("format");
    if (format == "e4m3_128x128") continue;
    const std::string name(n.outputs[0].second);
    const tensor& result = tensors.at(name);
    const bool fp4 = format == "mxfp4";
    tensor want = result;
    if (codes)
      want = fp4 ? decode_mxfp4(result, tensors.at(name + "_scale"), reading::right)
                 : decode_e4m3(result, tensors.at(name + "_scale"), 1, 128, reading::right);
    x.shape = {result.shape[0], x.size() / result.shape[0]};
    if (!codes) x.shape = result.shape;
    const std::int64_t columns = codes ? x.shape.back() : n.parameters.at("columns").get<std::int64_t>();
    const tensor again = round_groups(x, columns, fp4 ? 32 : codes ? 128 : 64, fp4, scaling::right);
    const std::int64_t width = x.shape.back();
    for (std::int64_t i = 0; i < again.size(); ++i)  // FP4 pads an odd row
      if (std::abs(again[i] - want[i / width * want.shape.back() + i % width]) > 1e-5 * std::abs(again[i]))
        throw dsv4::contract_error("make", v.name + ", " + name,
                                   "the same codes from rounded inputs: choose other inputs", "others");
  }
}

/// Tolerances follow from how errors grow on the path that a value takes, as measured by computing it with
/// every result of an op rounded to few significant bits (and, near those of float, with the given values of
/// single ops moved by as much): to 24, 23 and 22 bits for F32, to 8, 9 and 10 for BF16, each difference in
/// units of its own last place.
///   F64    2^-22: the rounding of the files, and an engine's own
///   F32    16 times that in units of 2^-24: a factor of 4 for sums of up to a few hundred terms that are
///          taken in float, and of 4 for libraries and orders of operations
///   BF16   4 times that in units of 2^-8: sums are taken in float there
/// rounded up to powers of two. Where rounding to bfloat16 changes a choice (or a code), or the tolerance
/// would reach 1/2, nothing after it is judged in BF16.
template <class Record>
test_vector make_vector(test_vector v, tensor_map& files, const Record& record) {
  struct sample {
    recorder to;
    double unit;       ///< what its differences are multiplied by
    bool same = true;  ///< whether it made the same choices so far
  };
  recorder exact;
  record(exact);
  v.nodes = exact.nodes, v.expected = exact.expected;
  v.ties = exact.steady;
  if (!v.ties) expect_clear_choices(v, exact.tensors);
  std::vector<sample> single(3), half(3);
  for (int i = 0; i < 3; ++i) {
    single[std::size_t(i)].to.bits = 24 - i, single[std::size_t(i)].unit = std::ldexp(1.0, -i);
    half[std::size_t(i)].to.bits = 8 + i, half[std::size_t(i)].unit = std::ldexp(1.0, i);
    record(single[std::size_t(i)].to), record(half[std::size_t(i)].to);
  }
  for (auto& entry : v.expected) {
    const std::string& name = entry.first;
    expectation& e = entry.second;
    tensor& t = exact.tensors.at(name);
    const tensor raw = t;
    e.largest = round_for_file(v.name + ", " + name, e.compare, t);
    const auto grown = [&](std::vector<sample>& samples) {
      double worst = 0;
      for (sample& s : samples) {
        const double d = deviation(raw, s.to.tensors.at(name), e.compare, e.largest > 0 ? e.largest : 1);
        if (std::isinf(d)) s.same = false;
        if (s.same) worst = std::max(worst, d * s.unit);
      }
      return worst;
    };
    const double in_single = grown(single), in_half = grown(half);
    if (!std::all_of(single.begin(), single.end(), [](const sample& s) { return s.same; }))
      throw dsv4::contract_error("make", v.name + ", " + name,
                                 "the same choices and codes with 22 bits: choose other inputs", "others");
    const bool judged = half[0].same && !exact.f32_only;
    if (e.compare == comparison::exact || e.compare == comparison::choice) {
      e.tolerance = {0, 0, judged ? 0 : NAN};
      continue;
    }
    e.tolerance[0] = 0x1p-22;
    e.tolerance[1] = power_of_two_above(std::max(16 * in_single, 16 * 0x1p-24));
    e.tolerance[2] = power_of_two_above(std::max({4 * in_half, 4 * 0x1p-8, e.tolerance[1]}));
    if (!judged || e.tolerance[2] >= 0.5) e.tolerance[2] = NAN;
  }
  expect_same_codes(v, exact.tensors);
  files = std::move(exact.tensors);
  return v;
}

}  // namespace conformance
