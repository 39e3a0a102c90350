// SPDX-License-Identifier: Apache-2.0
/// What a training step keeps from its forward pass, and what its backward pass computes again.
#pragma once

#include <dsv4/config/model_config.hpp>

namespace dsv4 {

/// A compile-time choice between memory and time; gradients have the same bits under every policy.
struct recompute_policy {
  /// Residual streams are kept before every that many sublayers. Those between are computed again from the
  /// sublayers' outputs, which are kept (mHC paper, section 4.3): elementwise work.
  int streams_every = 1;
  /// The inside of attention and MoE is not kept at all, but computed again from the streams: about a third
  /// more work in a step.
  bool sublayers = false;
  friend constexpr bool operator==(const recompute_policy&, const recompute_policy&) = default;
};

/// The number of sublayers per kept stream that needs least memory: a block of r sublayers keeps n D for its
/// streams, and its backward pass holds (n + 2) D for each; L sublayers then need n D L / r + (n + 2) D r, so
/// r = sqrt(n L / (n + 2)).
constexpr int least_memory_streams_every(const model_config& c) {
  const int n = c.hyper_connection.hc_mult, sublayers = 2 * c.num_hidden_layers();
  int r = 1;
  while ((r + 1) * (r + 1) * (n + 2) <= n * sublayers) ++r;
  return r;
}

namespace recompute {
inline constexpr recompute_policy nothing{};
/// Every fourth stream: what mHC's own kernels do, in blocks of two layers.
inline constexpr recompute_policy streams{.streams_every = 4};
inline constexpr recompute_policy sublayers{.sublayers = true};
inline constexpr recompute_policy everything{.streams_every = 4, .sublayers = true};
}  // namespace recompute

}  // namespace dsv4
