// SPDX-License-Identifier: Apache-2.0
/// One test for the backward of every op: finite differences, cpu against reference, threads, and the rule of
/// docs/notation.md about which gradients are overwritten, added to, or skipped.
#pragma once

#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/train/grad_check.hpp>

#include <cstring>
#include <string>
#include <vector>

namespace dsv4::testing {

/// What the backward does with the gradient of an input.
enum class role {
  overwritten,  ///< an activation
  added,        ///< a parameter, or residual streams
  none,         ///< it has no gradient
};

template <class T>
struct operand {
  std::string name;
  role gradient;
  buffer<T> values;
};

/// Values of one call, as a case sees them: inputs, outputs or gradients in its own order. A gradient that is
/// not wanted is a null pointer.
template <class T>
using pointers = std::vector<T*>;

/// Views of inputs; of outputs and gradients, empty when p is null.
template <class T, class... I>
view<const T, static_cast<int>(sizeof...(I))> as(const T* p, I... extents) {
  return {p, extents...};
}
template <class T, class... I>
view<T, static_cast<int>(sizeof...(I))> as(T* p, I... extents) {
  if (!p) return {};
  return {p, extents...};
}

/// A double copy of the inputs, or whatever T is: all types see the same numbers when they are floats.
template <class T>
operand<T> input(std::string name, role gradient, std::int64_t count, std::uint64_t seed, double size = 1) {
  operand<T> o{std::move(name), gradient, buffer<T>(count)};
  const auto r = random<float>(count, seed, size);
  for (std::int64_t i = 0; i < count; ++i) o.values[i] = T(r[i]);
  return o;
}

namespace detail {

/// A call of the backward of `c`: the gradients that it leaves.
template <class T, class Case, class P>
std::vector<buffer<T>> gradients_of(const Case& c, const P& p, std::vector<operand<T>>& inputs,
                                    const std::vector<buffer<T>>& dy, double parameters_before = 0,
                                    int skipped = -1) {
  std::vector<buffer<T>> g;
  pointers<const T> in, up;
  pointers<T> out;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    in.push_back(inputs[i].values.data());
    const bool wanted = inputs[i].gradient != role::none && static_cast<int>(i) != skipped;
    g.push_back(inputs[i].gradient == role::overwritten ? poison<T>(wanted ? inputs[i].values.size() : 0)
                                                        : buffer<T>(wanted ? inputs[i].values.size() : 0));
    if (inputs[i].gradient == role::added)
      for (T& v : g.back()) v = T(parameters_before);
  }
  for (auto& b : g) out.push_back(b.data());
  for (const auto& b : dy) up.push_back(b.data());
  workspace w;
  c.template backward<T>(p, w, in, up, out);
  return g;
}

template <class T>
bool same_bits(const buffer<T>& a, const buffer<T>& b) {
  return a.size() == b.size() &&
         (a.size() == 0 ||
          std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

/// Largest |a - b|, relative to the largest |b|; infinity when something is not finite.
template <class T>
double array_error(const buffer<T>& a, const buffer<T>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY, largest = 1e-30;
  for (std::int64_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double(b[i])));
  for (std::int64_t i = 0; i < a.size(); ++i) {
    const double e = std::abs(double(a[i]) - double(b[i])) / largest;
    if (!(e <= worst)) worst = std::isfinite(e) ? e : INFINITY;
  }
  return worst;
}

template <class T, class Case>
std::vector<buffer<T>> upstream_of(const Case& c, double size) {
  std::vector<buffer<T>> dy;
  for (std::int64_t count : c.outputs())
    dy.push_back(std::move(input<T>("", role::none, count, 900 + dy.size(), size).values));
  return dy;
}

}  // namespace detail

/// The reference backward of `c` against central differences of its forward, in double.
template <class Case>
void check_against_differences(const Case& c, double tolerance = 1e-7,
                               const grad_check_options& options = {}) {
  auto inputs = c.template inputs<double>();
  const auto dy = detail::upstream_of<double>(c, 1);
  const auto g = detail::gradients_of<double>(c, exec::reference{}, inputs, dy);
  std::vector<grad_check_argument> arguments;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].gradient != role::none)
      arguments.push_back({inputs[i].name,
                           {inputs[i].values.data(), static_cast<std::size_t>(inputs[i].values.size())},
                           {g[i].data(), static_cast<std::size_t>(g[i].size())}});
  const auto loss = [&] {
    pointers<const double> in;
    pointers<double> out;
    std::vector<buffer<double>> y;
    for (auto& o : inputs) in.push_back(o.values.data());
    for (std::int64_t count : c.outputs()) y.emplace_back(std::max<std::int64_t>(count, 1));
    for (auto& b : y) out.push_back(b.data());
    workspace w;
    c.template forward<double>(exec::reference{}, w, in, out);
    long double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i)
      for (std::int64_t k = 0; k < dy[i].size(); ++k) sum += static_cast<long double>(y[i][k]) * dy[i][k];
    return static_cast<double>(sum);
  };
  const auto worst = grad_check(loss, std::span<const grad_check_argument>(arguments), options);
  INFO(worst.text());
  CHECK(worst.error <= tolerance);
}

/// The cpu backward of `c` against the reference, within `terms` roundings of the largest element (what two
/// orders of the longest sum differ by); the same bits for any number of threads; the rule for gradients.
template <class T, class Case>
void check_cpu(const Case& c, double terms, double upstream_size = 1) {
  auto inputs = c.template inputs<T>();
  std::vector<buffer<T>> before;
  for (const auto& o : inputs) before.push_back(copy(o.values));
  const auto dy = detail::upstream_of<T>(c, upstream_size);
  std::vector<buffer<T>> dy_before;
  for (const auto& b : dy) dy_before.push_back(copy(b));

  const auto want = detail::gradients_of<T>(c, exec::reference{}, inputs, dy);
  const auto found = detail::gradients_of<T>(c, exec::cpu(2), inputs, dy);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO(inputs[i].name);
    CHECK(detail::array_error(found[i], want[i]) <= rounding<T>(terms));
  }
  for (int threads : {1, 4}) {
    const auto again = detail::gradients_of<T>(c, exec::cpu(threads), inputs, dy);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      INFO(inputs[i].name << " on " << threads << " threads");
      CHECK(detail::same_bits(found[i], again[i]));
    }
  }

  // Parameters: what was there before stays in the sum. (Activations were NaN before every call.)
  const double old = 0.5 * upstream_size;
  const auto check_added = [&](const auto& p, const std::vector<buffer<T>>& from_zero) {
    const auto sums = detail::gradients_of<T>(c, p, inputs, dy, old);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      INFO(inputs[i].name << " added to " << old);
      buffer<T> expected = copy(from_zero[i]);
      if (inputs[i].gradient == role::added)
        for (T& v : expected) v = T(double(v) + old);
      CHECK(detail::array_error(sums[i], expected) <= rounding<T>(terms + 2));
    }
  };
  check_added(exec::reference{}, want);
  check_added(exec::cpu(2), found);

  // Empty views are skipped, and change nothing else.
  const auto check_skipped = [&](const auto& p, const std::vector<buffer<T>>& all) {
    for (std::size_t s = 0; s < inputs.size(); ++s) {
      if (inputs[s].gradient == role::none) continue;
      const auto some = detail::gradients_of<T>(c, p, inputs, dy, 0, static_cast<int>(s));
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        INFO(inputs[i].name << " without " << inputs[s].name);
        if (i != s) CHECK(detail::same_bits(some[i], all[i]));
      }
    }
  };
  check_skipped(exec::reference{}, want);
  check_skipped(exec::cpu(2), found);

  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO(inputs[i].name << " was written");
    CHECK(detail::same_bits(before[i], inputs[i].values));
  }
  for (std::size_t i = 0; i < dy.size(); ++i) CHECK(detail::same_bits(dy_before[i], dy[i]));
}

/// All of it.
template <class Case>
void check_backward(const Case& c, double terms, const grad_check_options& options = {}) {
  check_against_differences(c, 1e-7, options);
  check_cpu<double>(c, terms);
  check_cpu<float>(c, terms);
}

}  // namespace dsv4::testing
