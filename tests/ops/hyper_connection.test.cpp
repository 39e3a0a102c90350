// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("comb not transposed: the first index is the source stream, the second the destination") {
  double x[] = {1, 10, 100, 1000}, v[] = {0.5}, post[] = {1, 2, 3, 4}, comb[16];
  for (int i = 0; i < 16; ++i) comb[i] = i + 1;  // comb[j][k] = 4 j + k + 1
  double y[4];
  hyper_connection_expand<double>::forward(
      exec::reference{}, {{x, 1, 4, 1}, {v, 1, 1}, {post, 1, 4}, {comb, 1, 4, 4}}, {{y, 1, 4, 1}});
  for (int k = 0; k < 4; ++k)
    CHECK(y[k] == Catch::Approx(0.5 * (k + 1) + (k + 1) + 10 * (k + 5) + 100 * (k + 9) + 1000 * (k + 13)));
}

TEST_CASE("wrong gate formulas, iteration count off: replayed in long double") {
  for (int iterations : {1, 2, 20})
    for (int n : {2, 3, 4}) {
      const int mixes = (2 + n) * n, width = 5;
      const auto x = random<double>(n * width, 1), z = random<double>(mixes, 2, 3),
                 base = random<double>(mixes, 3);
      const double scale[] = {0.7, 1.3, 2.1}, eps = 1e-3;
      auto pre = poison<double>(n), post = poison<double>(n), comb = poison<double>(n * n);
      hyper_connection_gates<double>::forward(
          exec::reference{},
          {x.as(1, n, width), z.as(1, mixes), base.as(mixes), {scale, 3}, 1e-6, eps, iterations},
          {pre.as(1, n), post.as(1, n), comb.as(1, n, n)});
      long double squares = 0;
      for (double v : x) squares += (long double)(v)*v;
      const long double rho = 1 / std::sqrt(squares / (n * width) + 1e-6L);
      const auto h = [&](int i, int s) { return z[i] * rho * scale[s] + base[i]; };
      for (int i = 0; i < n; ++i) {
        CHECK(pre[i] == Catch::Approx(double(1 / (1 + std::exp(-h(i, 0))) + eps)).epsilon(1e-13));
        CHECK(post[i] == Catch::Approx(double(2 / (1 + std::exp(-h(n + i, 1))))).epsilon(1e-13));
      }
      std::vector<long double> m(static_cast<std::size_t>(n * n));
      const auto at = [&](int j, int k) -> long double& { return m[static_cast<std::size_t>(j * n + k)]; };
      for (int j = 0; j < n; ++j) {
        long double sum = 0;
        for (int k = 0; k < n; ++k) sum += at(j, k) = std::exp(h(2 * n + j * n + k, 2));
        for (int k = 0; k < n; ++k) at(j, k) = at(j, k) / sum + eps;
      }
      for (int pass = 0; pass < 2 * iterations - 1; ++pass)  // columns, rows, columns, ..., columns
        for (int a = 0; a < n; ++a) {
          long double sum = eps;
          for (int b = 0; b < n; ++b) sum += pass % 2 ? at(a, b) : at(b, a);
          for (int b = 0; b < n; ++b) (pass % 2 ? at(a, b) : at(b, a)) /= sum;
        }
      for (int i = 0; i < n * n; ++i)
        CHECK(comb[i] == Catch::Approx(double(m[static_cast<std::size_t>(i)])).epsilon(1e-12));
    }
}

TEST_CASE("Sinkhorn: columns sum to one, also for near-permutation logits of any size") {
  for (const double size : {1.0, 30.0, 1e4}) {
    const std::int64_t n = 4, rows = 20;
    const auto x = random<float>(rows * n * 3), z = random<float>(rows * 24, 2, size),
               base = random<float>(24, 3);
    const float scale[] = {1, 1, 1};
    auto pre = poison<float>(rows * n), post = poison<float>(rows * n), comb = poison<float>(rows * n * n);
    hyper_connection_gates<float>::forward(
        exec::cpu(1), {x.as(rows, n, 3), z.as(rows, 24), base.as(24), {scale, 3}, 1e-6, 1e-6, 20},
        {pre.as(rows, n), post.as(rows, n), comb.as(rows, n, n)});
    for (std::int64_t t = 0; t < rows; ++t)
      for (int k = 0; k < n; ++k) {
        double sum = 0;
        for (int j = 0; j < n; ++j) {
          CHECK(std::isfinite(comb.as(rows, n, n)(t, j, k)));
          sum += double(comb.as(rows, n, n)(t, j, k));
        }
        CHECK(std::abs(sum - 1) <
              (size > 100 ? 0.6 : 1e-5));  // a column that lost all weight is held up by eps alone
      }
  }
}

TEMPLATE_TEST_CASE("hyper-connections: cpu equals reference, in place too, for any number of streams", "",
                   float, double) {
  using T = TestType;
  for (std::int64_t n : {1, 2, 3, 4, 5})
    for (std::int64_t rows : {0, 1, 33}) {
      const std::int64_t width = 70, mixes = (2 + n) * n;
      const auto x = random<T>(rows * n * width, 1), z = random<T>(rows * mixes, 2),
                 base = random<T>(mixes, 3);
      const auto scale = random<T>(3, 4), v = random<T>(rows * width, 5);
      auto pre = poison<T>(rows * n), post = poison<T>(rows * n), comb = poison<T>(rows * n * n);
      auto pre2 = poison<T>(rows * n), post2 = poison<T>(rows * n), comb2 = poison<T>(rows * n * n);
      const typename hyper_connection_gates<T>::inputs gates{
          x.as(rows, n, width), z.as(rows, mixes), base.as(mixes), scale.as(3), 1e-6, 1e-6, 20};
      hyper_connection_gates<T>::forward(exec::reference{}, gates,
                                         {pre.as(rows, n), post.as(rows, n), comb.as(rows, n, n)});
      hyper_connection_gates<T>::forward(exec::cpu(2), gates,
                                         {pre2.as(rows, n), post2.as(rows, n), comb2.as(rows, n, n)});
      CHECK(relative_error(pre2, pre) <= rounding<T>(40));
      CHECK(relative_error(post2, post) <= rounding<T>(40));
      CHECK(relative_error(comb2, comb) <= rounding<T>(200));  // forty passes of a few roundings each
      auto u = poison<T>(rows * width), u2 = poison<T>(rows * width);
      hyper_connection_collapse<T>::forward(exec::reference{}, {x.as(rows, n, width), pre.as(rows, n)},
                                            {u.as(rows, width)});
      hyper_connection_collapse<T>::forward(exec::cpu(2), {x.as(rows, n, width), pre.as(rows, n)},
                                            {u2.as(rows, width)});
      CHECK(relative_error(u2, u) <= rounding<T>(double(n) * double(n)));
      auto y = poison<T>(rows * n * width), in_place = copy(x);
      hyper_connection_expand<T>::forward(
          exec::reference{}, {x.as(rows, n, width), v.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
          {y.as(rows, n, width)});
      hyper_connection_expand<T>::forward(
          exec::cpu(2),
          {in_place.as(rows, n, width), v.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
          {in_place.as(rows, n, width)});
      CHECK(relative_error(in_place, y) <= rounding<T>(double(n) * double(n) + 2));
    }
}
