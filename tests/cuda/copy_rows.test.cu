// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/copy_rows.cuh>

using namespace dsv4;
using namespace dsv4::testing;

TEMPLATE_TEST_CASE("copy_rows: cuda equals reference, around the end of either ring", "", float, double,
                   bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 33, 64})
    for (const std::int64_t count : {0, 1, 5, 7})
      for (const std::int64_t first : {0, 4, 1000}) {
        auto from = random<T>(9 * width, 1);
        auto to = random<T>(7 * width, 2);  // rows that are not written stay
        copy_rows<T>::forward(exec::reference{}, {from.h(9, width), first, first + 3, count},
                              {to.h(7, width)});
        check_close(to, 0, [&] {
          copy_rows<T, D>::forward(gpu(), {from.d(9, width), first, first + 3, count}, {to.d(7, width)});
        });
      }
}
