// SPDX-License-Identifier: Apache-2.0
/// Where the forward pass passes its values through a smaller format.
#pragma once

namespace dsv4 {

/// A compile-time policy of the model (specification, section 9.3).
struct numerics_config {
  bool index_fp4 = false;  ///< indexer queries and keys: Hadamard transform, then MXFP4 (1 x 32, E8M0)
  bool kv_fp8 = false;     ///< window and compressed KV, all but the rotated channels: E4M3 in groups of 64
  friend constexpr bool operator==(const numerics_config&, const numerics_config&) = default;
};

namespace numerics {
inline constexpr numerics_config float32{};
inline constexpr numerics_config index_fp4{.index_fp4 = true};
inline constexpr numerics_config kv_fp8_index_fp4{.index_fp4 = true, .kv_fp8 = true};
}  // namespace numerics

}  // namespace dsv4
