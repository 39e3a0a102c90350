// SPDX-License-Identifier: Apache-2.0
/// How close a discrete choice was: what index_topk and route choose by.
#pragma once

#include "suite.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

namespace conformance {

/// The numbers that a choice is made by, (rows, candidates): the highest win. NaN is no candidate. Nothing
/// where a table chooses. `at(name)` returns a tensor or null.
template <class Lookup>
std::optional<tensor> keys_of_choice(const node& n, const Lookup& at) {
  if (n.op == "index_topk") {
    const tensor* scores = at(n.output("scores"));
    return scores ? std::optional(*scores) : std::nullopt;
  }
  if (n.op != "route" || !n.input("table").empty()) return {};
  const tensor *logits = at(n.input("logits")), *bias = at(n.input("bias"));
  if (!logits || !bias) return {};
  tensor keys = *logits;
  for (std::int64_t i = 0; i < keys.size(); ++i) {
    const double x = keys[i];
    keys[i] =
        std::sqrt(x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x))) + (*bias)[i % bias->size()];
  }
  return keys;
}

/// The distance between the last chosen and the first that is not, of the row's `k` best; infinity where
/// there are no more than k candidates.
inline double gap(const tensor& keys, std::int64_t row, std::int64_t k) {
  std::vector<double> sorted;
  for (std::int64_t i = 0; i < keys.row(); ++i)
    if (const double v = keys[row * keys.row() + i]; !std::isnan(v)) sorted.push_back(v);
  std::sort(sorted.rbegin(), sorted.rend());
  if (static_cast<std::int64_t>(sorted.size()) <= k) return INFINITY;
  return sorted[static_cast<std::size_t>(k - 1)] - sorted[static_cast<std::size_t>(k)];
}

}  // namespace conformance
