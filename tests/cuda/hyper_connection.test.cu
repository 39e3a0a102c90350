// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/hyper_connection.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: gates of magnitude 5 before the exponential (5 units, and 2 of its own); then sums of n positive
// terms and quotients, 2 (n + 1) roundings per Sinkhorn iteration, which damps errors instead of adding them:
// a quarter of them is allowed for.
TEMPLATE_TEST_CASE("hyper_connection_gates: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t n : {1, 2, 3, 4, 6, 16})
    for (const std::int64_t rows : {0, 1, 3, 33})
      for (const std::int64_t width : {5, 64, 1000})
        for (const bool collapse : {false, true}) {
          INFO("n = " << n << ", " << rows << " x " << width << (collapse ? ", collapse" : ""));
          const std::int64_t mixes = collapse ? n : (2 + n) * n, segments = collapse ? 1 : 3;
          auto x = random<T>(rows * n * width, 1, 2), z = random<T>(rows * mixes, 2, 4),
               base = random<T>(mixes, 3), scale = random<T>(segments, 4);
          auto pre = poison<T>(rows * n), post = poison<T>(collapse ? 0 : rows * n),
               comb = poison<T>(collapse ? 0 : rows * n * n);
          hyper_connection_gates<T>::forward(
              exec::reference{},
              {x.h(rows, n, width), z.h(rows, mixes), base.h(mixes), scale.h(segments), 1e-6, 1e-6, 20},
              {pre.h(rows, n), post.h(collapse ? 0 : rows, n), comb.h(collapse ? 0 : rows, n, n)});
          const auto run = [&] {
            hyper_connection_gates<T, D>::forward(
                gpu(),
                {x.d(rows, n, width), z.d(rows, mixes), base.d(mixes), scale.d(segments), 1e-6, 1e-6, 20},
                {pre.d(rows, n), post.d(collapse ? 0 : rows, n), comb.d(collapse ? 0 : rows, n, n)});
          };
          const double limit = tolerance<T>(10 + 10.0 * double(n + 1));
          check_close(comb, limit, run);
          check_close(pre, limit, run);
          check_close(post, limit, run);
        }
}

// Terms: n + 1 products and sums.
TEMPLATE_TEST_CASE("hyper_connection_collapse and _expand: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t n : {1, 2, 4, 5, 16})
    for (const std::int64_t rows : {0, 1, 3, 33})
      for (const std::int64_t width : {5, 64, 1000}) {
        INFO("n = " << n << ", " << rows << " x " << width);
        auto x = random<T>(rows * n * width, 1), pre = random<T>(rows * n, 2), v = random<T>(rows * width, 3),
             post = random<T>(rows * n, 4), comb = random<T>(rows * n * n, 5);
        auto u = poison<T>(rows * width), out = poison<T>(rows * n * width);
        hyper_connection_collapse<T>::forward(exec::reference{}, {x.h(rows, n, width), pre.h(rows, n)},
                                              {u.h(rows, width)});
        check_close(u, tolerance<T>(double(n) + 1), [&] {
          hyper_connection_collapse<T, D>::forward(gpu(), {x.d(rows, n, width), pre.d(rows, n)},
                                                   {u.d(rows, width)});
        });
        hyper_connection_expand<T>::forward(
            exec::reference{}, {x.h(rows, n, width), v.h(rows, width), post.h(rows, n), comb.h(rows, n, n)},
            {out.h(rows, n, width)});
        check_close(out, tolerance<T>(double(n) + 2), [&] {
          hyper_connection_expand<T, D>::forward(
              gpu(), {x.d(rows, n, width), v.d(rows, width), post.d(rows, n), comb.d(rows, n, n)},
              {out.d(rows, n, width)});
        });
        check_close(x, INFINITY, [&] {  // in place
          hyper_connection_expand<T, D>::forward(
              gpu(), {x.d(rows, n, width), v.d(rows, width), post.d(rows, n), comb.d(rows, n, n)},
              {x.d(rows, n, width)});
        });
        CHECK(same_bytes(x.fetch(), out.fetch()));
      }
}
