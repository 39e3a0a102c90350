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

// Terms: those of forward and four more; the weight's gradient adds up to 2048 of them, of magnitude 100, in
// a tree.
TEMPLATE_TEST_CASE("swiglu: gradients, cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 31, 2048})
    for (const std::int64_t rows : {0, 1, 3, 77}) {
      auto gate = random<T>(rows * width, 1, 20), up = random<T>(rows * width, 2, 20), w = random<T>(rows, 3),
           dh = random<T>(rows * width, 4);
      auto dgate = poison<T>(rows * width), dup = poison<T>(rows * width), dw = poison<T>(rows);
      swiglu<T>::backward(exec::reference{}, host_work(),
                          {gate.h(rows, width), up.h(rows, width), w.h(rows), 10}, {dh.h(rows, width)},
                          {dgate.h(rows, width), dup.h(rows, width), dw.h(rows)});
      const auto run = [&] {
        swiglu<T, D>::backward(gpu(), work(), {gate.d(rows, width), up.d(rows, width), w.d(rows), 10},
                               {dh.d(rows, width)}, {dgate.d(rows, width), dup.d(rows, width), dw.d(rows)});
      };
      check_close(dgate, tolerance<T>(16), run);
      check_close(dup, tolerance<T>(16), run);
      check_close(dw, tolerance<T>(16 + 64 * 100), run);
    }
}
