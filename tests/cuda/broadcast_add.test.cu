// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/broadcast_add.cuh>

using namespace dsv4;
using namespace dsv4::testing;

TEMPLATE_TEST_CASE("broadcast_add: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 33, 512})
    for (const std::int64_t rows : {0, 1, 3, 70})
      for (const std::int64_t streams : {1, 4}) {
        auto e = random<T>(rows * width), x = random<T>(rows * streams * width, 2);
        broadcast_add<T>::forward(exec::reference{}, {e.h(rows, width)}, {x.h(rows, streams, width)});
        check_close(x, tolerance<T>(1), [&] {
          broadcast_add<T, D>::forward(gpu(), {e.d(rows, width)}, {x.d(rows, streams, width)});
        });
      }
}

TEST_CASE("broadcast_add: gradients, cuda equals reference") {
  auto e = random<float>(7 * 33), dy = random<float>(7 * 4 * 33, 2), de = poison<float>(7 * 33);
  broadcast_add<float>::backward(exec::reference{}, host_work(), {e.h(7, 33)}, {dy.h(7, 4, 33)},
                                 {de.h(7, 33)});
  check_close(de, tolerance<float>(4), [&] {
    broadcast_add<float, D>::backward(gpu(), work(), {e.d(7, 33)}, {dy.d(7, 4, 33)}, {de.d(7, 33)});
  });
}
