// SPDX-License-Identifier: Apache-2.0
/// In which formats a model's weights are stored, and where its forward pass goes through a smaller format.
#pragma once

#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/block_scaled.hpp>

#include <cstdint>
#include <type_traits>

namespace dsv4 {

/// How a weight matrix is stored.
enum class weight_format : std::uint8_t {
  scalar,  ///< as the model's scalar type
  bf16,
  fp8,    ///< E4M3, one scale per 128 x 128
  mxfp4,  ///< E2M1, one scale per 1 x 32
};

/// A compile-time policy of the model (docs/numeric-types.md). Norms, sinks, biases and mHC parameters are
/// always in the model's scalar type.
struct numerics_config {
  weight_format wide = weight_format::scalar;  ///< embedding, head, router, compressors, indexer head weights
  weight_format linear =
      weight_format::scalar;  ///< attention and MTP projections, shared expert, index queries
  weight_format expert = weight_format::scalar;  ///< routed experts
  bool fp8_activations = false;  ///< E4M3 in 1 x 128 at the input of every linear and expert, except wo_a
  bool index_fp4 = false;        ///< indexer queries and keys: Hadamard transform, then MXFP4 (1 x 32, E8M0)
  bool kv_fp8 = false;  ///< window and compressed KV, all but the rotated channels: E4M3 in groups of 64
  friend constexpr bool operator==(const numerics_config&, const numerics_config&) = default;
};

namespace numerics {
inline constexpr numerics_config float32{};
inline constexpr numerics_config index_fp4{.index_fp4 = true};
inline constexpr numerics_config kv_fp8_index_fp4{.index_fp4 = true, .kv_fp8 = true};
inline constexpr numerics_config bf16{
    .wide = weight_format::bf16, .linear = weight_format::bf16, .expert = weight_format::bf16};
inline constexpr numerics_config mxfp4_experts_only{.expert = weight_format::mxfp4};
/// The instruct checkpoints, as they are served.
inline constexpr numerics_config v4_released{.wide = weight_format::bf16,
                                             .linear = weight_format::fp8,
                                             .expert = weight_format::mxfp4,
                                             .fp8_activations = true,
                                             .index_fp4 = true,
                                             .kv_fp8 = true};
/// The base checkpoints: FP8 experts.
inline constexpr numerics_config v4_released_base{.wide = weight_format::bf16,
                                                  .linear = weight_format::fp8,
                                                  .expert = weight_format::fp8,
                                                  .fp8_activations = true,
                                                  .index_fp4 = true,
                                                  .kv_fp8 = true};
}  // namespace numerics

namespace detail {
template <weight_format F, class T>
struct storage_of {
  using type = T;
};
template <class T>
struct storage_of<weight_format::bf16, T> {
  using type = dsv4::bf16;
};
template <class T>
struct storage_of<weight_format::fp8, T> {
  using type = fp8_weight;
};
template <class T>
struct storage_of<weight_format::mxfp4, T> {
  using type = mxfp4;
};
}  // namespace detail

/// The storage types of a model of scalar type `T` under `Q`.
template <class T, numerics_config Q = numerics::float32>
struct storage_types {
  using wide = typename detail::storage_of<Q.wide, T>::type;
  using linear = typename detail::storage_of<Q.linear, T>::type;
  using expert = typename detail::storage_of<Q.expert, T>::type;
  /// What the inputs of linears and experts are rounded to.
  using activation = std::conditional_t<Q.fp8_activations, fp8_activation, T>;
  /// Whether all weights are in the scalar type.
  static constexpr bool plain =
      std::is_same_v<wide, T> && std::is_same_v<linear, T> && std::is_same_v<expert, T>;
};

}  // namespace dsv4
