// SPDX-License-Identifier: Apache-2.0
/// An op of a vector with its tensors: what a wrong result is explained from.
#pragma once

#include "stored_weights.hpp"
#include "suite.hpp"

#include <cmath>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conformance {

/// What a known mistake makes of an op's inputs.
struct mistake {
  std::string what;
  std::vector<std::string> rows;  ///< of the list of reported bugs
  tensor result;
};

class scene {
 public:
  /// `at` finds tensors of the suite and right weights; null where there is none.
  scene(const test_vector& v, const node& n, std::string role, stored_weights& weights,
        std::function<const tensor*(std::string_view)> at)
      : vector(v), call(n), role(std::move(role)), weights(weights), at_(std::move(at)) {}

  const test_vector& vector;
  const node& call;
  const std::string role;  ///< of the wrong output
  stored_weights& weights;

  const tensor* at(std::string_view name) const { return name.empty() ? nullptr : at_(name); }
  const tensor* input(std::string_view name) const { return at(call.input(name)); }
  const tensor* expected() const { return at(call.output(role)); }
  template <class U = double>
  U parameter(const char* name) const {
    return call.parameters.at(name).get<U>();
  }
  /// Whether all of these inputs can be had.
  template <class... Names>
  bool has(Names... names) const {
    return (input(names) && ...);
  }
  void add(std::string what, std::vector<std::string> rows, tensor result) {
    found.push_back({std::move(what), std::move(rows), std::move(result)});
  }
  /// f(x) of every element.
  template <class F>
  void add_each(std::string what, std::vector<std::string> rows, const tensor& t, const F& f) {
    tensor result = t;
    for (double& x : result.values) x = f(x);
    add(std::move(what), std::move(rows), std::move(result));
  }

  std::vector<mistake> found;

 private:
  std::function<const tensor*(std::string_view)> at_;
};

inline double logistic(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace conformance
