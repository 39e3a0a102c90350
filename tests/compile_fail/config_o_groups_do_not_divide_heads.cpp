// expect: attention.o_groups must divide num_attention_heads
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.attention.o_groups = 7;
  return c;
}();
static_assert(dsv4::valid<broken>());
