// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/swiglu.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: the exponential (2 units), sum, quotient, two products.
TEMPLATE_TEST_CASE("swiglu: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 31, 96, 2048})
    for (const std::int64_t rows : {0, 1, 3, 77})
      for (const bool weighted : {false, true}) {
        auto gate = random<T>(rows * width, 1, 20), up = random<T>(rows * width, 2, 20),
             w = random<T>(rows, 3);
        auto h = poison<T>(rows * width);
        swiglu<T>::forward(
            exec::reference{},
            {gate.h(rows, width), up.h(rows, width), weighted ? w.h(rows) : vector_view<T>{}, 10},
            {h.h(rows, width)});
        check_close(h, tolerance<T>(8), [&] {
          swiglu<T, D>::forward(
              gpu(), {gate.d(rows, width), up.d(rows, width), weighted ? w.d(rows) : vector_view<T, D>{}, 10},
              {h.d(rows, width)});
        });
      }
}
