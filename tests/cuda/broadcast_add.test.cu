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
