// SPDX-License-Identifier: Apache-2.0
/// The model that dsv4-run carries in itself: made by dsv4-train; docs/training.md has its recipe.
#pragma once

#include <dsv4/config/presets.hpp>
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/safetensors_memory.hpp>
#include <dsv4/model/quantise_parameters.hpp>

#include <cstddef>
#include <memory>
#include <span>

namespace runner {

inline constexpr dsv4::model_config embedded_config = dsv4::v4_nano;
inline constexpr dsv4::numerics_config embedded_numerics = dsv4::numerics::v4_released;
inline constexpr const char* embedded_origin =
    "v4_nano, 1.3M parameters, trained on 2.0M bytes of the King James Bible in 1000 steps; "
    "1.33 nats per byte on text that was held out";

/// The file model.safetensors as it is in the program.
std::span<const std::byte> embedded_file();

/// Its weights, in the formats of `store`.
template <dsv4::policy P, class T, dsv4::numerics_config Q>
void load_embedded(const P& p, dsv4::parameter_store<embedded_config, T, Q>& store) {
  const auto file = std::make_shared<const dsv4::io::safetensors_memory>("embedded model", embedded_file());
  if constexpr (dsv4::storage_types<T, Q>::plain || Q == embedded_numerics) {
    dsv4::io::load_parameters(file, store);
  } else {
    dsv4::parameter_store<embedded_config, T> wide;
    dsv4::io::load_parameters(file, wide);
    dsv4::quantise_parameters(p, wide, store);
  }
}

}  // namespace runner
