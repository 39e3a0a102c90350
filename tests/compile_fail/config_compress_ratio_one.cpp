// expect: attention.csa_compress_ratio must be at least 2
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.attention.csa_compress_ratio = 1;
  return c;
}();
static_assert(dsv4::valid<broken>());
