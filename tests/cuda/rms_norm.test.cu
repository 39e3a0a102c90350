// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/rms_norm.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: the mean of `width` squares in a tree of partial sums of at most 64 terms each, the root, three
// products.
TEMPLATE_TEST_CASE("rms_norm: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 7, 32, 96, 512, 1024, 4096, 7168})
    for (const std::int64_t rows : {0, 1, 3, 9, 130})
      for (const bool weighted : {false, true}) {
        INFO(rows << " x " << width << (weighted ? ", weighted" : ""));
        auto x = random<T>(rows * width, 1, 3), weight = random<T>(width, 2);
        auto y = poison<T>(rows * width);
        rms_norm<T>::forward(exec::reference{},
                             {x.h(rows, width), weighted ? weight.h(width) : vector_view<T>{}, 1e-6},
                             {y.h(rows, width)});
        check_close(y, tolerance<T>(64), [&] {
          rms_norm<T, D>::forward(gpu(),
                                  {x.d(rows, width), weighted ? weight.d(width) : vector_view<T, D>{}, 1e-6},
                                  {y.d(rows, width)});
        });
        check_close(x, INFINITY, [&] {  // in place
          rms_norm<T, D>::forward(gpu(),
                                  {x.d(rows, width), weighted ? weight.d(width) : vector_view<T, D>{}, 1e-6},
                                  {x.d(rows, width)});
        });
        CHECK(difference(x.fetch(), y.host) <= tolerance<T>(64));
      }
}

TEMPLATE_TEST_CASE("rms_norm: cuda takes strided rows that are not aligned", "", float, bf16) {
  using T = TestType;
  auto x = random<T>(5 * 131), y = poison<T>(5 * 131);
  rms_norm<T>::forward(exec::reference{}, {x.h(5, 131).columns(1, 96), {}, 1e-6},
                       {y.h(5, 131).columns(3, 96)});
  const auto got = run_twice(y, [&] {
    rms_norm<T, D>::forward(gpu(), {x.d(5, 131).columns(1, 96), {}, 1e-6}, {y.d(5, 131).columns(3, 96)});
  });
  for (std::int64_t i = 0; i < got.size(); ++i) {
    const std::int64_t c = i % 131;
    if (c >= 3 && c < 99)
      CHECK(std::abs(double(got[i]) - double(y.host[i])) <=
            tolerance<T>(64) * (1 + std::abs(double(y.host[i]))));
    else
      CHECK(std::isnan(double(got[i])));  // nothing else is written
  }
}

// Terms: two sums over a row in a tree, a cube, three products; the weight's gradient adds up to 130 rows.
TEMPLATE_TEST_CASE("rms_norm: gradients, cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 32, 512, 1000})
    for (const std::int64_t rows : {0, 1, 3, 130})
      for (const bool weighted : {false, true}) {
        INFO(rows << " x " << width << (weighted ? ", weighted" : ""));
        auto x = random<T>(rows * width, 1), weight = random<T>(width, 2), dy = random<T>(rows * width, 3);
        auto dx = poison<T>(rows * width), dweight = random<T>(width, 4);  // is added to
        rms_norm<T>::backward(exec::reference{}, host_work(),
                              {x.h(rows, width), weighted ? weight.h(width) : vector_view<T>{}, 1e-6},
                              {dy.h(rows, width)},
                              {dx.h(rows, width), weighted ? dweight.h(width) : vector_view<T>{}});
        const auto run = [&](matrix_view<T, D> to) {
          rms_norm<T, D>::backward(
              gpu(), work(), {x.d(rows, width), weighted ? weight.d(width) : vector_view<T, D>{}, 1e-6},
              {dy.d(rows, width)}, {to, weighted ? dweight.d(width) : vector_view<T, D>{}});
        };
        const double limit = tolerance<T>(200);
        check_close(dweight, limit, [&] { run(dx.d(rows, width)); });
        check_close(dx, limit, [&] { run(dx.d(rows, width)); });
        check_close(dy, INFINITY, [&] { run(dy.d(rows, width)); });  // dx may be dy
        CHECK(same_bytes(dy.fetch(), dx.fetch()));
      }
}
