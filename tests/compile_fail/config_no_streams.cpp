// expect: hyper_connection.hc_mult must be from 1 to 16
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.hyper_connection.hc_mult = 0;
  return c;
}();
static_assert(dsv4::valid<broken>());
