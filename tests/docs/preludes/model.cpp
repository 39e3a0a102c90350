// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/sampler.hpp>
#include <dsv4/model/transformer.hpp>

#include <iostream>
#include <vector>

using namespace dsv4;
constexpr model_config config = v4_nano;
using model = transformer<config>;

int main() {
  model::parameters weights;
  initialise_by_name(weights);
  model::state state;
  workspace scratch;
  // BLOCK
}
