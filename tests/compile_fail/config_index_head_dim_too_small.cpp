// expect: attention.index_head_dim must not be smaller than qk_rope_head_dim
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.attention.index_head_dim = 32;
  return c;
}();
static_assert(dsv4::valid<broken>());
