// SPDX-License-Identifier: Apache-2.0
#include <dsv4/cpu.hpp>
#include <dsv4/ops/quantise.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <iostream>

using namespace dsv4;

buffer<float> row(std::initializer_list<float> list) {
  buffer<float> b(static_cast<std::int64_t>(list.size()));
  std::copy(list.begin(), list.end(), b.begin());
  return b;
}
void check(float found, float wanted) {
  if (found == wanted) return;
  std::cerr << "found " << found << ", wanted " << wanted << '\n';
  std::exit(1);
}

int main() {
  // BLOCK
}
