// expect: moe.swiglu_limit must be positive
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.moe.swiglu_limit = 0;
  return c;
}();
static_assert(dsv4::valid<broken>());
