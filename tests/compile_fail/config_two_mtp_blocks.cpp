// expect: model_config.num_nextn_predict_layers must be 0 or 1
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.num_nextn_predict_layers = 2;
  return c;
}();
static_assert(dsv4::valid<broken>());
