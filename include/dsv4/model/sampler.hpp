// SPDX-License-Identifier: Apache-2.0
/// Choosing the next token from logits.
#pragma once

#include <dsv4/core/expects.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace dsv4 {

/// Greedy, temperature and nucleus (top-p) sampling. The same seed and logits give the same tokens
/// everywhere: the generator is specified by the standard and its bits are turned into a real here.
class sampler {
 public:
  /// temperature 0 is greedy; top_p keeps the likeliest tokens whose probabilities sum to at least top_p.
  /// Throws contract_error for a negative or non-finite temperature, or top_p outside (0, 1].
  explicit sampler(double temperature = 0, double top_p = 1, std::uint64_t seed = 0)
      : temperature_(temperature), top_p_(top_p), random_(seed) {
    if (!(temperature >= 0) || std::isinf(temperature))
      throw contract_error("sampler", "temperature", "a finite number, 0 or more",
                           std::to_string(temperature));
    if (!(top_p > 0 && top_p <= 1))
      throw contract_error("sampler", "top_p", "more than 0 and at most 1", std::to_string(top_p));
  }

  /// The index of the chosen logit; the lowest of equals when greedy. Throws contract_error when there is
  /// none or the largest is not finite.
  template <class T>
  std::int32_t operator()(std::span<const T> logits) {
    expect(!logits.empty(), "sampler", "logits", "at least one", 0);
    const auto best = std::max_element(logits.begin(), logits.end());
    if (!std::isfinite(double(*best)))
      throw contract_error("sampler", "largest logit", "a finite number", std::to_string(double(*best)));
    if (temperature_ == 0) return static_cast<std::int32_t>(best - logits.begin());

    probability_.resize(logits.size());
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i)
      sum += probability_[i] = std::exp((double(logits[i]) - double(*best)) / temperature_);
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::size_t kept = order_.size();
    if (top_p_ < 1) {
      std::sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
        const double pa = probability_[static_cast<std::size_t>(a)],
                     pb = probability_[static_cast<std::size_t>(b)];
        return pa != pb ? pa > pb : a < b;
      });
      double mass = 0;
      for (kept = 0; kept < order_.size() && mass < top_p_ * sum; ++kept)
        mass += probability_[static_cast<std::size_t>(order_[kept])];
      sum = mass;
    }
    double left = double(random_() >> 11) * 0x1p-53 * sum;
    for (std::size_t i = 0; i < kept; ++i) {
      left -= probability_[static_cast<std::size_t>(order_[i])];
      if (left < 0) return order_[i];
    }
    return order_[kept - 1];  // only by rounding
  }

 private:
  double temperature_, top_p_;
  std::mt19937_64 random_;
  std::vector<double> probability_;
  std::vector<std::int32_t> order_;
};

}  // namespace dsv4
