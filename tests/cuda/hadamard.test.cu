// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/hadamard.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: log2(D) sums, one root, one product.
TEMPLATE_TEST_CASE("hadamard: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 2, 32, 128, 1024})
    for (const std::int64_t rows : {0, 1, 3, 65}) {
      auto x = random<T>(rows * width);
      hadamard<T>::forward(exec::reference{}, {}, {x.h(rows, width)});
      check_close(x, tolerance<T>(12), [&] { hadamard<T, D>::forward(gpu(), {}, {x.d(rows, width)}); });
    }
}

TEMPLATE_TEST_CASE("hadamard: gradients, cuda equals reference", "", float, double) {
  using T = TestType;
  auto dy = random<T>(5 * 128), dx = poison<T>(5 * 128);
  hadamard<T>::backward(exec::reference{}, host_work(), {}, {dy.h(5, 128)}, {dx.h(5, 128)});
  check_close(dx, tolerance<T>(12),
              [&] { hadamard<T, D>::backward(gpu(), work(), {}, {dy.d(5, 128)}, {dx.d(5, 128)}); });
}
