// expect: moe.num_experts_per_tok must be positive and not exceed n_routed_experts
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.moe.num_experts_per_tok = 300;
  return c;
}();
static_assert(dsv4::valid<broken>());
