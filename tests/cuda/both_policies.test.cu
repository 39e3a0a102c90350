// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/cpu.hpp>
#include <dsv4/cuda.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: a sum of 96 products.
TEST_CASE("one file asks host and device for the same product", "") {
  auto x = random<float>(5 * 96, 1), weight = random<float>(7 * 96, 2), y = poison<float>(5 * 7);
  linear<float>::forward(exec::cpu(2), {x.h(5, 96), weight.h(7, 96)}, {y.h(5, 7)});
  check_close(y, tolerance<float>(96), [&] {
    linear<float, D>::forward(gpu(), {x.d(5, 96), weight.d(7, 96)}, {y.d(5, 7)});
  });
}
