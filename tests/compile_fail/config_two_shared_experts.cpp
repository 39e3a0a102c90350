// expect: moe.n_shared_experts must be 1: V4 has one shared expert
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.moe.n_shared_experts = 2;
  return c;
}();
static_assert(dsv4::valid<broken>());
