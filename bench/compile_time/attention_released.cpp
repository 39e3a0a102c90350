// SPDX-License-Identifier: Apache-2.0
// One block in the released formats: attention, all three kinds, at V4-Flash's sizes.
#include <dsv4/blocks/attention.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>

void run(const dsv4::exec::cpu& p, dsv4::workspace& w,
         const dsv4::attention_parameters<float, dsv4::numerics::v4_released>& weights,
         std::span<const dsv4::attention_segment<float>> segments, dsv4::matrix_view<const float> x,
         dsv4::matrix_view<float> y) {
  dsv4::attention<dsv4::v4_flash.attention, dsv4::numerics::v4_released, float, dsv4::space::host>(
      p, w, weights, 1e-6, segments, x, y);
}
