// expect: model_config.eos_token_id must be a token of the vocabulary
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>

constexpr dsv4::model_config broken = [] {
  dsv4::model_config c = dsv4::v4_flash;
  c.eos_token_id = 129280;
  return c;
}();
static_assert(dsv4::valid<broken>());
