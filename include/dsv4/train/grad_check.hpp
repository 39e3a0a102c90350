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
  /// The largest distance of a point, relative to max(1, |x|). Smaller ones, each a quarter of the one
  /// before, are tried as well, and of all estimates the one that agrees best with its neighbour counts:
  /// large steps suffer from curvature and kinks (a clamp, a ReLU, a top-k), small ones from rounding.
  double step = 4e-3;
  int steps = 4;
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
  double error = 0;   ///< relative, beyond what rounding of the loss explains; infinity when not finite
  double spread = 0;  ///< between the estimates at the two best steps: what the numeric value is worth
  std::int64_t checked = 0;  ///< elements, of all arguments

  std::string text() const {
    char line[256];
    std::snprintf(line, sizeof line,
                  "%s[%lld]: analytic %.15g, numeric %.15g, relative error %.3g (spread %.3g), %lld checked",
                  name.c_str(), static_cast<long long>(index), analytic, numeric, error, spread,
                  static_cast<long long>(checked));
    return line;
  }
};

/// `loss()` evaluates the function at the current values, in double. Central differences of fourth order:
/// (8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))) / 12h. The four values are rounded, so the estimate is
/// off by up to 3/2 eps |loss| / h: errors count from there on.
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
      const auto estimate = [&](double step, double& rounding) {
        // A power of two: x + h and x - h differ from x by the same exact amount unless |x| is huge.
        const double h = std::exp2(std::round(std::log2(step / 2 * std::max(1.0, std::abs(kept)))));
        const auto at = [&](double offset) {
          x = kept + offset;
          const double value = loss();
          x = kept;
          return value;
        };
        const double right = at(h);
        rounding = 1.5 * std::numeric_limits<double>::epsilon() * std::abs(right) / h;
        return (8 * (right - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
      };
      double rounding = 0, next_rounding = 0, spread = std::numeric_limits<double>::infinity();
      double numeric = estimate(options.step, rounding);
      double previous = numeric, previous_rounding = rounding;
      for (int k = 1; k < options.steps; ++k) {
        const double next = estimate(options.step * std::pow(0.25, k), next_rounding);
        if (std::abs(next - previous) < spread)
          spread = std::abs(next - previous), numeric = previous, rounding = previous_rounding;
        previous = next, previous_rounding = next_rounding;
      }
      const double analytic = a.gradient[static_cast<std::size_t>(index)];
      const double scale = std::max({std::abs(analytic), std::abs(numeric), options.floor * largest,
                                     std::numeric_limits<double>::min()});
      double error = std::max(std::abs(analytic - numeric) - rounding, 0.0) / scale;
      if (!std::isfinite(analytic) || !std::isfinite(numeric))
        error = std::numeric_limits<double>::infinity();
      ++worst.checked;
      if (error > worst.error || worst.index < 0) {
        worst.name = a.name, worst.index = index;
        worst.analytic = analytic, worst.numeric = numeric, worst.error = error;
        worst.spread = spread;
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
