// SPDX-License-Identifier: Apache-2.0
/// Weights to start a training run with.
#pragma once

#include <dsv4/model/parameters.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace dsv4 {

struct initialisation {
  std::uint64_t seed = 0;
  /// Standard deviation of the embedding; matrices have 1 / sqrt(in) (the report is silent).
  double embedding = 1;
  /// Of the gates' dynamic part in mHC (mHC paper, section 4.1: small, so that a layer starts as its static
  /// part).
  double gating = 0.01;
};

/// Fills every weight from its released name and the seed, the same on every machine. Uniform: embedding with
/// the given deviation, matrices with 1 / sqrt(in), those that write to the residual streams
/// (wo_b, w2) smaller by sqrt(2 layers). Norms are 1; sinks, position biases, router biases and mHC biases 0,
/// but for a combination that begins by keeping each stream to itself (diagonal logits of 2); mHC scales
/// `gating`. A hash table sends token t, slot j to expert (t k + j) mod E.
template <model_config C, class T, numerics_config Q>
void initialise_for_training(parameter_store<C, T, Q>& store, const initialisation& options = {}) {
  const double depth = std::sqrt(2.0 * C.num_hidden_layers());
  constexpr int n = C.hyper_connection.hc_mult;
  initialise_by_name(store, options.seed);
  for_each_parameter<C>(store.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>& v) {
    if constexpr (std::is_same_v<U, T>) {
      const std::string_view name = info.name;
      const auto fill = [&](double value) {
        for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = T(value);
      };
      const auto scale = [&](double factor) {
        for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = T(double(v.data[i]) * factor);
      };
      if (name.ends_with("norm.weight")) {
        fill(1);
      } else if (name.ends_with("attn_sink") || name.ends_with(".ape") || name.ends_with("gate.bias")) {
        fill(0);
      } else if (name.ends_with("_base")) {
        fill(0);
        if (v.size() == C.hyper_connection.mixes())
          for (int i = 0; i < n; ++i) v.data[2 * n + i * n + i] = T(2);
      } else if (name.ends_with("_scale")) {
        fill(options.gating);
      } else if (name == "embed.weight") {
        scale(options.embedding * std::sqrt(double(C.hidden_size)));
      } else if (name.ends_with("wo_b.weight") || name.ends_with("w2.weight")) {
        scale(1 / depth);
      }
    }
  });
}

}  // namespace dsv4
