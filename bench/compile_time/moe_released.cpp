// SPDX-License-Identifier: Apache-2.0
// One block in the released formats: the mixture of experts, at V4-Flash's sizes.
#include <dsv4/blocks/moe.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>

void run(const dsv4::exec::cpu& p, dsv4::workspace& w,
         const dsv4::moe_parameters<float, dsv4::numerics::v4_released>& weights,
         dsv4::vector_view<const std::int32_t> tokens, dsv4::matrix_view<const float> x,
         dsv4::matrix_view<float> y) {
  dsv4::moe<dsv4::v4_flash.moe, dsv4::numerics::v4_released, float, dsv4::space::host>(p, w, weights, tokens,
                                                                                       x, y);
}
