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

// The same, with several tokens per block where a block walks over tokens.
TEST_CASE("hyper_connection_expand: many tokens of four bf16 streams") {
  for (const auto& [rows, width] :
       {std::pair<std::int64_t, std::int64_t>{1500, 136}, {300, 4096}, {150, 7168}}) {
    INFO(rows << " x " << width);
    const std::int64_t n = 4;
    auto x = random<bf16>(rows * n * width, 1), v = random<bf16>(rows * width, 3),
         post = random<bf16>(rows * n, 4), comb = random<bf16>(rows * n * n, 5);
    auto out = poison<bf16>(rows * n * width);
    hyper_connection_expand<bf16>::forward(
        exec::reference{}, {x.h(rows, n, width), v.h(rows, width), post.h(rows, n), comb.h(rows, n, n)},
        {out.h(rows, n, width)});
    const auto run = [&](tensor_view<bf16, D> to) {
      hyper_connection_expand<bf16, D>::forward(
          gpu(), {x.d(rows, n, width), v.d(rows, width), post.d(rows, n), comb.d(rows, n, n)}, {to});
    };
    check_close(out, tolerance<bf16>(double(n) + 2), [&] { run(out.d(rows, n, width)); });
    check_close(x, INFINITY, [&] { run(x.d(rows, n, width)); });  // in place
    CHECK(same_bytes(x.fetch(), out.fetch()));
  }
}

// Terms: those of forward, run backwards; base and scale add up 33 rows, dx one more sum over the row.
TEMPLATE_TEST_CASE("hyper_connection_gates: gradients, cuda equals reference", "", float, double) {
  using T = TestType;
  for (const std::int64_t n : {1, 2, 4, 6, 16})
    for (const std::int64_t rows : {1, 3, 33})
      for (const bool collapse : {false, true}) {
        INFO("n = " << n << ", " << rows << (collapse ? ", collapse" : ""));
        const std::int64_t width = 40, mixes = collapse ? n : (2 + n) * n, segments = collapse ? 1 : 3;
        auto x = random<T>(rows * n * width, 1, 2), z = random<T>(rows * mixes, 2, 2),
             base = random<T>(mixes, 3), scale = random<T>(segments, 4), dpre = random<T>(rows * n, 5),
             dpost = random<T>(rows * n, 6), dcomb = random<T>(rows * n * n, 7);
        auto dx = random<T>(rows * n * width, 8), dz = poison<T>(rows * mixes), dbase = random<T>(mixes, 9),
             dscale = random<T>(segments, 10);
        hyper_connection_gates<T>::backward(
            exec::reference{}, host_work(),
            {x.h(rows, n, width), z.h(rows, mixes), base.h(mixes), scale.h(segments), 1e-6, 1e-6, 20},
            {dpre.h(rows, n), collapse ? matrix_view<T>{} : dpost.h(rows, n),
             collapse ? tensor_view<T>{} : dcomb.h(rows, n, n)},
            {dx.h(rows, n, width), dz.h(rows, mixes), dbase.h(mixes), dscale.h(segments), true});
        const auto run = [&] {
          hyper_connection_gates<T, D>::backward(
              gpu(), work(),
              {x.d(rows, n, width), z.d(rows, mixes), base.d(mixes), scale.d(segments), 1e-6, 1e-6, 20},
              {dpre.d(rows, n), collapse ? matrix_view<T, D>{} : dpost.d(rows, n),
               collapse ? tensor_view<T, D>{} : dcomb.d(rows, n, n)},
              {dx.d(rows, n, width), dz.d(rows, mixes), dbase.d(mixes), dscale.d(segments), true});
        };
        const double limit = tolerance<T>(300 + 40 * double(n));
        check_close(dz, limit, run);
        check_close(dbase, limit, run);
        check_close(dscale, limit, run);
        check_close(dx, limit, run);
      }
}

// Terms: sums over a row of 130 channels, or over n streams.
TEMPLATE_TEST_CASE("hyper_connection_collapse and _expand: gradients, cuda equals reference", "", float,
                   double, bf16) {
  using T = TestType;
  for (const std::int64_t n : {1, 2, 4, 5, 16})
    for (const std::int64_t rows : {1, 3, 33}) {
      INFO("n = " << n << ", " << rows);
      const std::int64_t width = 130;
      auto x = random<T>(rows * n * width, 1), pre = random<T>(rows * n, 2), du = random<T>(rows * width, 3);
      for (const bool add : {false, true}) {
        auto dx = random<T>(rows * n * width, 4), dpre = poison<T>(rows * n);
        hyper_connection_collapse<T>::backward(exec::reference{}, host_work(),
                                               {x.h(rows, n, width), pre.h(rows, n)}, {du.h(rows, width)},
                                               {dx.h(rows, n, width), dpre.h(rows, n), add});
        const auto collapse = [&] {
          hyper_connection_collapse<T, D>::backward(gpu(), work(), {x.d(rows, n, width), pre.d(rows, n)},
                                                    {du.d(rows, width)},
                                                    {dx.d(rows, n, width), dpre.d(rows, n), add});
        };
        check_close(dx, tolerance<T>(2), collapse);
        check_close(dpre, tolerance<T>(140), collapse);
      }

      auto v = random<T>(rows * width, 5), post = random<T>(rows * n, 6), comb = random<T>(rows * n * n, 7),
           up = random<T>(rows * n * width, 8);
      auto dv = poison<T>(rows * width), dpost = poison<T>(rows * n), dcomb = poison<T>(rows * n * n),
           own = poison<T>(rows * n * width);
      hyper_connection_expand<T>::backward(
          exec::reference{}, host_work(),
          {x.h(rows, n, width), v.h(rows, width), post.h(rows, n), comb.h(rows, n, n)},
          {up.h(rows, n, width)},
          {own.h(rows, n, width), dv.h(rows, width), dpost.h(rows, n), dcomb.h(rows, n, n)});
      const auto expand = [&](tensor_view<T, D> to) {
        hyper_connection_expand<T, D>::backward(
            gpu(), work(), {x.d(rows, n, width), v.d(rows, width), post.d(rows, n), comb.d(rows, n, n)},
            {up.d(rows, n, width)}, {to, dv.d(rows, width), dpost.d(rows, n), dcomb.d(rows, n, n)});
      };
      check_close(own, tolerance<T>(17), [&] { expand(own.d(rows, n, width)); });
      check_close(dv, tolerance<T>(17), [&] { expand(own.d(rows, n, width)); });
      check_close(dpost, tolerance<T>(140), [&] { expand(own.d(rows, n, width)); });
      check_close(dcomb, tolerance<T>(140), [&] { expand(own.d(rows, n, width)); });
      check_close(up, INFINITY, [&] { expand(up.d(rows, n, width)); });  // dx may be the upstream gradient
      CHECK(same_bytes(up.fetch(), own.fetch()));
    }
}
