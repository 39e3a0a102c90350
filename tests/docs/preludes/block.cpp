// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/tensor/buffer.hpp>

using namespace dsv4;

// BLOCK

int main() {
  buffer<float> gate(4 * 3), up(4 * 3), down(3 * 4), in(2 * 3), out(2 * 3);
  for (auto* b : {&gate, &up, &down, &in})
    for (float& v : *b) v = 1;
  workspace scratch;
  const gated_parameters<float> weights{gate.as(4, 3), up.as(4, 3), down.as(3, 4)};
  gated<v4_nano.moe, float, space::host>(exec::cpu{}, scratch, weights, in.as(2, 3), out.as(2, 3));
  // 4 silu(3) 3
  return out[0] > 34.28f && out[0] < 34.30f ? 0 : 1;
}
