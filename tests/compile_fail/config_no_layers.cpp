// expect: model_config.layers must have at least one layer
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.layers = {};
  return c;
}();
static_assert(dsv4::valid<broken>());
