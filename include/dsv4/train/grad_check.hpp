// SPDX-License-Identifier: Apache-2.0
/// Compares the gradients of a backward pass with finite differences. For users' own ops as well.
///
///   std::vector<double> x = ..., dx = ...;              // a point, and what the backward says there
///   const auto worst = dsv4::grad_check([&] { return loss_at(x); }, {{"x", x, dx}});
///   if (!(worst.error < 1e-7)) std::cerr << worst.text();
///
/// An op with several outputs y is checked through the loss sum(y dy), dy being any fixed upstream gradient.
#pragma once

#include <dsv4/core/expects.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>

namespace dsv4 {

/// One argument of the function under test.
struct grad_check_argument {
  std::string name;
  std::span<double> values;          ///< changed one at a time, and restored
  std::span<const double> gradient;  ///< d loss / d values, as the backward pass computed it
};

struct grad_check_options {
  /// Distance of the outer points, relative to max(1, |x|). Rounding of the loss enters the derivative as
  /// eps |loss| / step, the fifth derivative as step^4 / 30: 1e-3 balances the two in double for functions
  /// that vary on a scale of 1. Smaller where a kink (a clamp, a ReLU, a top-k) is near.
  double step = 1e-3;
  /// Errors are relative to the largest of |analytic|, |numeric| and this part of the argument's largest
  /// gradient, so that elements far below the others are not held to their own rounding.
  double floor = 1e-3;
  /// How many elements of each argument are checked, evenly spread; 0: all of them.
  std::int64_t most = 0;
};

/// The element whose gradient is worst.
struct grad_check_result {
  std::string name;
  std::int64_t index = -1;
  double analytic = 0, numeric = 0;
  double error = 0;      ///< relative; infinity when something is not finite
  double curvature = 0;  ///< |fourth-order - second-order estimate|: large next to a kink or for a bad step
  std::int64_t checked = 0;  ///< elements, of all arguments

  std::string text() const {
    char line[256];
    std::snprintf(
        line, sizeof line,
        "%s[%lld]: analytic %.15g, numeric %.15g, relative error %.3g (curvature %.3g), %lld checked",
        name.c_str(), static_cast<long long>(index), analytic, numeric, error, curvature,
        static_cast<long long>(checked));
    return line;
  }
};

/// `loss()` evaluates the function at the current values, in double. Central differences of fourth order:
/// (8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))) / 12h.
template <class Loss>
grad_check_result grad_check(const Loss& loss, std::span<const grad_check_argument> arguments,
                             const grad_check_options& options = {}) {
  grad_check_result worst;
  for (const grad_check_argument& a : arguments) {
    const auto size = static_cast<std::int64_t>(a.values.size());
    expect_extent("grad_check", a.name + " gradient", static_cast<std::int64_t>(a.gradient.size()), size);
    double largest = 0;
    for (double g : a.gradient) largest = std::max(largest, std::abs(g));
    const std::int64_t count = options.most > 0 ? std::min(options.most, size) : size;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t index = i * size / count;
      double& x = a.values[static_cast<std::size_t>(index)];
      const double kept = x;
      // A power of two: x + h and x - h differ from x by the same exact amount unless |x| is huge.
      const double h = std::exp2(std::round(std::log2(options.step / 2 * std::max(1.0, std::abs(kept)))));
      const auto at = [&](double offset) {
        x = kept + offset;
        const double value = loss();
        x = kept;
        return value;
      };
      const double inner = at(h) - at(-h), outer = at(2 * h) - at(-2 * h);
      const double numeric = (8 * inner - outer) / (12 * h);
      const double analytic = a.gradient[static_cast<std::size_t>(index)];
      const double scale = std::max({std::abs(analytic), std::abs(numeric), options.floor * largest,
                                     std::numeric_limits<double>::min()});
      double error = std::abs(analytic - numeric) / scale;
      if (!std::isfinite(error)) error = std::numeric_limits<double>::infinity();
      ++worst.checked;
      if (error > worst.error || worst.index < 0) {
        worst.name = a.name, worst.index = index;
        worst.analytic = analytic, worst.numeric = numeric, worst.error = error;
        worst.curvature = std::abs(numeric - inner / (2 * h));
      }
    }
  }
  return worst;
}

template <class Loss>
grad_check_result grad_check(const Loss& loss, std::initializer_list<grad_check_argument> arguments,
                             const grad_check_options& options = {}) {
  return grad_check(loss, std::span<const grad_check_argument>(arguments.begin(), arguments.size()), options);
}

}  // namespace dsv4
