// SPDX-License-Identifier: Apache-2.0
/// NVFP4, to compare MXFP4 with: no part of DeepSeek-V4 is stored in it.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/numeric/fp4.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cstdint>

namespace dsv4 {

/// Sixteen FP4 values with a scale in E4M3, under one float scale for the whole tensor:
/// value = element * scale * tensor_scale, in float from left to right.
struct nvfp4_block {
  static constexpr int size = 16;

  e2m1x2 pairs[size / 2];
  e4m3 scale;

  /// The scale of a tensor with largest magnitude `amax`: its largest block gets the largest block scale.
  DSV4_HOST_DEVICE static constexpr float tensor_scale(float amax) { return amax / (6.0f * 448.0f); }

  /// From sixteen values. The block scale, like the elements, is rounded to nearest even, so the largest
  /// element may saturate. A block whose scale rounds to 0 becomes zeros; one with a NaN gets the NaN scale.
  DSV4_HOST_DEVICE static constexpr nvfp4_block quantise(const float* values, float tensor_scale) {
    float amax = 0;
    for (int i = 0; i < size; ++i) {
      const float magnitude = values[i] < 0 ? -values[i] : values[i];
      if (!(magnitude <= amax)) amax = magnitude;  // NaN enters,
      if (amax != amax) break;                     // and stays
    }
    nvfp4_block block;
    if (amax == 0 || tensor_scale == 0) return block;
    block.scale = e4m3(amax / e2m1::max() / tensor_scale);
    const float scale = static_cast<float>(block.scale) * tensor_scale;
    if (scale == 0 || block.scale.is_nan()) return block;
    for (int i = 0; i < size; i += 2)
      block.pairs[i / 2] = {e2m1(values[i] / scale), e2m1(values[i + 1] / scale)};
    return block;
  }
  /// To sixteen values.
  DSV4_HOST_DEVICE constexpr void dequantise(float tensor_scale, float* values) const {
    const float factor = static_cast<float>(scale);
    for (int i = 0; i < size; i += 2) {
      values[i] = static_cast<float>(pairs[i / 2].even()) * factor * tensor_scale;
      values[i + 1] = static_cast<float>(pairs[i / 2].odd()) * factor * tensor_scale;
    }
  }
};

static_assert(sizeof(nvfp4_block) == 9);

}  // namespace dsv4
