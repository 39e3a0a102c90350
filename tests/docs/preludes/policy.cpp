// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/rms_norm.hpp>

#include <iostream>

// BLOCK

int main() {
  float x[2] = {3, 4}, y[2] = {};
  dsv4::rms_norm<float>::forward(mine{}, {{x, 1, 2}, {}, 0}, {{y, 1, 2}});
  return y[0] > 0.84f && y[0] < 0.85f ? 0 : 1;
}
