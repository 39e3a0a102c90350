// expect: rope.yarn_factor must be at least 1
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.attention.rope.yarn_factor = 0.5;
  return c;
}();
static_assert(dsv4::valid<broken>());
