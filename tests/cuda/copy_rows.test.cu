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

TEST_CASE("copy_rows: gradients, cuda equals reference") {
  auto source = random<float>(9 * 33), dy = random<float>(7 * 33, 2), dsource = poison<float>(9 * 33);
  copy_rows<float>::backward(exec::reference{}, host_work(), {source.h(9, 33), 4, 7, 5}, {dy.h(7, 33)},
                             {dsource.h(9, 33)});
  check_close(dsource, 0, [&] {
    copy_rows<float, D>::backward(gpu(), work(), {source.d(9, 33), 4, 7, 5}, {dy.d(7, 33)},
                                  {dsource.d(9, 33)});
  });
}
