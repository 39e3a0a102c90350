// expect: moe.num_hash_layers must not exceed the number of layers
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.moe.num_hash_layers = 44;
  return c;
}();
static_assert(dsv4::valid<broken>());
