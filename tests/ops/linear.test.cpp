// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/error.hpp>
#include <dsv4/ops/cpu/gemm_dispatch.hpp>
#include <dsv4/ops/cpu/linear.hpp>
#include <dsv4/ops/linear.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace {

using dsv4::batched_linear;
using dsv4::grouped_linear;
using dsv4::linear;
using dsv4::matrix_view;
using dsv4::tensor_view;
using dsv4::vector_view;
using dsv4::detail::instruction_set;
using dsv4::exec::cpu;
using dsv4::exec::reference;
using dsv4::testing::contains;

constexpr auto every_set = {instruction_set::portable, instruction_set::avx2, instruction_set::avx512};

/// A matrix whose rows lie `pad` elements apart; the gaps hold NaN, so that reading one shows.
template <class T>
struct padded {
  padded(std::int64_t rows, std::int64_t columns, std::int64_t pad, unsigned seed)
      : store(static_cast<std::size_t>(rows * (columns + pad) + 1), std::numeric_limits<T>::quiet_NaN()),
        view(store.data(), rows, columns) {
    view.stride[0] = columns + pad;
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) view(i, j) = T(normal(random));
  }
  /// Whether every gap still holds NaN.
  bool gaps_untouched() const {
    for (std::size_t i = 0; i < store.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      const bool gap = at >= view.extent[0] * view.stride[0] || at % view.stride[0] >= view.extent[1];
      if (gap && !std::isnan(store[i])) return false;
    }
    return true;
  }
  std::vector<T> store;
  matrix_view<T> view;
};

/// The largest |found - x w^T| over the bound 2 K eps sum|x||w| of a sum of K products in any order.
template <class T>
double error_over_bound(const matrix_view<T>& x, const matrix_view<T>& w, const matrix_view<T>& found) {
  double worst = 0;
  for (std::int64_t t = 0; t < x.extent[0]; ++t)
    for (std::int64_t o = 0; o < w.extent[0]; ++o) {
      double exact = 0, size = 0;
      for (std::int64_t i = 0; i < x.extent[1]; ++i) {
        exact += double(x(t, i)) * double(w(o, i));
        size += std::abs(double(x(t, i)) * double(w(o, i)));
      }
      const double bound = 2 * double(x.extent[1]) * double(std::numeric_limits<T>::epsilon()) * size;
      const double error = std::abs(double(found(t, o)) - exact);
      if (!(error <= bound)) return std::numeric_limits<double>::infinity();
      if (bound > 0) worst = std::max(worst, error / bound);
    }
  return worst;
}

template <class T>
bool same_bits(const T* a, const T* b, std::int64_t n) {
  return n == 0 || std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("linear multiplies by rows of the weight, not by its columns", "[linear]", float, double) {
  using T = TestType;
  std::vector<T> x{1, 2, 3, -1, 0, 4}, w{1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1}, y(8);
  const auto check = [&](const auto& p) {
    linear<T>::forward(p, {matrix_view<T>(x.data(), 2, 3), matrix_view<T>(w.data(), 4, 3)},
                       {matrix_view<T>(y.data(), 2, 4)});
    CHECK(y == std::vector<T>{1, 2, 3, 6, -1, 0, 4, 3});
  };
  check(reference{});
  check(cpu(1));
  check(cpu(2));
}

TEMPLATE_TEST_CASE("grouped and batched linear use the matrix of their own group", "[linear]", float,
                   double) {
  using T = TestType;
  std::vector<T> x{1, 2, 3, 4, 5, 6}, w{1, 1, 10, 100, 2, -1}, y(3);
  std::vector<std::int64_t> offsets{0, 1, 1, 3};  // expert 1 has no rows
  const auto check = [&](const auto& p) {
    grouped_linear<T>::forward(p,
                               {matrix_view<T>(x.data(), 3, 2), vector_view<std::int64_t>(offsets.data(), 4),
                                tensor_view<T>(w.data(), 3, 1, 2)},
                               {matrix_view<T>(y.data(), 3, 1)});
    CHECK(y == std::vector<T>{3, 2, 4});
    batched_linear<T>::forward(p, {tensor_view<T>(x.data(), 1, 3, 2), tensor_view<T>(w.data(), 3, 1, 2)},
                               {tensor_view<T>(y.data(), 1, 3, 1)});
    CHECK(y == std::vector<T>{3, 430, 4});
  };
  check(reference{});
  check(cpu(2));
}

TEMPLATE_TEST_CASE("linear is right for odd shapes and strided rows, and writes nothing else", "[linear]",
                   float, double) {
  using T = TestType;
  const cpu p(2);
  for (const std::int64_t n : {0, 1, 2, 3, 5, 64, 200})
    for (const std::int64_t k : {0, 1, 7, 8, 9, 31, 64, 100, 1025, 2500})
      for (const std::int64_t o : {1, 3, 4, 9, 67}) {
        if (n > 5 && k > 100 && o > 9) continue;  // enough is enough
        padded<T> x(n, k, 3, 1), w(o, k, 5, 2), y(n, o, 2, 3);
        linear<T>::forward(p, {x.view, w.view}, {y.view});
        INFO("n " << n << ", k " << k << ", o " << o);
        CHECK(error_over_bound(x.view, w.view, y.view) <= 1);
        CHECK(y.gaps_untouched());
      }
}

TEMPLATE_TEST_CASE("a row's product has the same bits alone, in any batch, with any threads", "[linear]",
                   float, double) {
  using T = TestType;
  for (const std::int64_t k : {5, 64, 100, 1100, 2500}) {
    const std::int64_t rows = 201, o = 75;
    padded<T> x(rows, k, 1, 4), w(o, k, 0, 5), all(rows, o, 0, 6), some(rows, o, 0, 7);
    linear<T>::forward(cpu(1), {x.view, w.view}, {all.view});
    for (const int threads : {1, 2, 4}) {
      const cpu p(threads);
      for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 7, 11, 17, 64, 193, 201})
        for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, rows - n}) {
          if (first + n > rows) continue;
          linear<T>::forward(p, {x.view.rows(first, n), w.view}, {some.view.rows(0, n)});
          INFO("k " << k << ", threads " << threads << ", rows " << n << " from " << first);
          CHECK(same_bits(some.view.data, &all.view(first, 0), n * o));
        }
      // A column of y does not depend on the columns beside it either.
      padded<T> column(rows, 1, 0, 8);
      linear<T>::forward(p, {x.view, w.view.rows(41, 1)}, {column.view});
      bool same = true;
      for (std::int64_t t = 0; t < rows; ++t) same = same && column.view(t, 0) == all.view(t, 41);
      CHECK(same);
    }
  }
}

TEMPLATE_TEST_CASE("grouped and batched linear have the bits of linear", "[linear]", float, double) {
  using T = TestType;
  const std::int64_t k = 1040, o = 21, experts = 6;
  const std::vector<std::int64_t> offsets{0, 0, 1, 8, 8, 210, 212};
  padded<T> x(212, k, 0, 1), w(experts * o, k, 4, 2), y(212, o, 3, 3), z(212, o, 0, 4);
  tensor_view<T> weight(w.view.data, experts, o, k);
  weight.stride[1] = w.view.stride[0], weight.stride[0] = o * weight.stride[1];
  for (const int threads : {1, 2, 4}) {
    const cpu p(threads);
    grouped_linear<T>::forward(p, {x.view, vector_view<const std::int64_t>(offsets.data(), 7), weight},
                               {y.view});
    CHECK(y.gaps_untouched());
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t begin = offsets[std::size_t(e)], n = offsets[std::size_t(e) + 1] - begin;
      linear<T>::forward(cpu(1), {x.view.rows(begin, n), weight[e]}, {z.view.rows(begin, n)});
      bool same = true;
      for (std::int64_t t = begin; t < begin + n; ++t)
        same = same && same_bits(&y.view(t, 0), &z.view(t, 0), o);
      CHECK(same);
    }
    const std::int64_t rows = 212 / 2;  // each row of x is a channel group: two groups
    std::vector<T> out(static_cast<std::size_t>(rows * 2 * o));
    const tensor_view<T> b(out.data(), rows, 2, o);
    batched_linear<T>::forward(p, {x.view.reshape(rows, 2, k), weight.rows(0, 2)}, {b});
    linear<T>::forward(cpu(1), {x.view, weight[1]}, {z.view});
    bool same = true;
    for (std::int64_t t = 0; t < rows; ++t) same = same && same_bits(&b(t, 1, 0), &z.view(2 * t + 1, 0), o);
    CHECK(same);
  }
}

TEMPLATE_TEST_CASE("linear refuses shapes that do not fit and says which", "[linear]", float, double) {
  using T = TestType;
  std::vector<T> a(64);
  const auto m = [&](std::int64_t rows, std::int64_t columns) {
    return matrix_view<T>(a.data(), rows, columns);
  };
  CHECK_THROWS_WITH(linear<T>::forward(cpu(1), {m(2, 3), m(4, 5)}, {m(2, 4)}), contains("weight columns"));
  CHECK_THROWS_WITH(linear<T>::forward(cpu(1), {m(2, 3), m(4, 3)}, {m(3, 4)}), contains("y rows"));
  CHECK_THROWS_AS(linear<T>::forward(reference{}, {m(2, 3), m(4, 3)}, {m(2, 5)}), dsv4::contract_error);
}

TEMPLATE_TEST_CASE("every instruction set of this machine computes the matrix kernels right", "[linear]",
                   float, double) {
  using T = TestType;
  const double eps = double(std::numeric_limits<T>::epsilon());
  for (const auto set : every_set) {
    if (!dsv4::detail::supported(set)) continue;
    INFO("instruction set " << static_cast<int>(set));
    const auto& kernels = dsv4::detail::cpu_kernels<T>(set);
    for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 7, 13})
      for (const std::int64_t k : {1, 7, 17, 64, 1300})
        for (const std::int64_t o : {1, 4, 6, 8, 13}) {
          padded<T> x(n, k, 1, 1), w(o, k, 2, 2), y(n, o, 3, 3), alone(1, o, 0, 4);
          kernels.gemm_nt(x.view.data, x.view.stride[0], n, w.view.data, w.view.stride[0], o, k, y.view.data,
                          y.view.stride[0]);
          CHECK(error_over_bound(x.view, w.view, y.view) <= 1);
          CHECK(y.gaps_untouched());
          kernels.gemm_nt(&x.view(n - 1, 0), 0, 1, w.view.data, w.view.stride[0], o, k, alone.view.data, o);
          CHECK(same_bits(alone.view.data, &y.view(n - 1, 0), o));
        }
    for (const std::int64_t m : {1, 3, 6, 8})
      for (const std::int64_t k : {1, 2, 64})
        for (const std::int64_t n : {1, 5, 8, 16, 33, 64, 100}) {
          padded<T> a(m, k, 1, 1), b(k, n, 2, 2), c(m, n, 3, 3), bt(n, k, 0, 4);
          for (std::int64_t i = 0; i < k; ++i)
            for (std::int64_t j = 0; j < n; ++j) bt.view(j, i) = b.view(i, j);
          kernels.gemm_nn(a.view.data, k + 1, m, b.view.data, n + 2, k, n, c.view.data, n + 3, false);
          CHECK(error_over_bound(a.view, bt.view, c.view) <= 1);
          CHECK(c.gaps_untouched());
          // Added to what is there, the product is the same, and so it is from a transposed or packed a.
          padded<T> sum(m, n, 1, 6), before(m, n, 1, 6), at(k, m, 2, 7);
          for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t p = 0; p < k; ++p) at.view(p, i) = a.view(i, p);
          kernels.gemm_nn(a.view.data, k + 1, m, b.view.data, n + 2, k, n, sum.view.data, n + 1, true);
          bool same = sum.gaps_untouched();
          for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = 0; j < n; ++j)
              same = same && sum.view(i, j) == before.view(i, j) + c.view(i, j);
          std::vector<T> scratch(dsv4::detail::outer_scratch);
          const auto check_same = [&](const auto& kernel, const padded<T>& left, auto... more) {
            padded<T> d(m, n, 2, 8);
            kernel(left.view.data, left.view.stride[0], m, b.view.data, n + 2, k, n, d.view.data, n + 2,
                   false, more...);
            same = same && d.gaps_untouched();
            for (std::int64_t i = 0; i < m; ++i) same = same && same_bits(&d.view(i, 0), &c.view(i, 0), n);
          };
          check_same([&](auto... given) { kernels.gemm_tn(given...); }, at);
          check_same([&](auto... given) { kernels.block(false, given...); }, a, scratch.data());
          check_same([&](auto... given) { kernels.block(true, given...); }, at, scratch.data());
          CHECK(same);

          std::vector<T> sums(static_cast<std::size_t>(n) + 1, T(77));
          kernels.weighted_relu(a.view.data, k, b.view.data, n + 2, n, sums.data());
          for (std::int64_t j = 0; j < n; ++j) {
            double exact = 0, size = 0;
            for (std::int64_t i = 0; i < k; ++i) {
              exact += double(a.view(0, i)) * std::max(0.0, double(b.view(i, j)));
              size += std::abs(double(a.view(0, i)) * double(b.view(i, j)));
            }
            CHECK(std::abs(double(sums[std::size_t(j)]) - exact) <= 2 * double(k) * eps * size);
          }
          CHECK(sums.back() == T(77));
        }
  }
}

TEMPLATE_TEST_CASE("products that sum over rows are right for any blocks, depth and number of threads",
                   "[linear]", float, double) {
  using T = TestType;
  // Around the edges of blocks (192), depth (256) and register tiles.
  for (const std::int64_t m : {1, 13, 200})
    for (const std::int64_t n : {1, 70, 193})
      for (const std::int64_t k : {0, 1, 255, 600}) {
        if (m * n * k > 8'000'000) continue;
        padded<T> a(m, k, 1, 1), at(k, m, 2, 2), b(k, n, 3, 3), bt(n, k, 0, 4);
        for (std::int64_t p = 0; p < k; ++p) {
          for (std::int64_t i = 0; i < m; ++i) at.view(p, i) = a.view(i, p);
          for (std::int64_t j = 0; j < n; ++j) bt.view(j, p) = b.view(p, j);
        }
        padded<T> one(m, n, 1, 5), four(m, n, 1, 6), transposed(m, n, 1, 7);
        const auto run = [&]<bool Transposed>(int threads, padded<T>& from, padded<T>& c) {
          dsv4::detail::gemm_outer<Transposed, T>(cpu(threads), 1, n, false, [&](std::int64_t) {
            return dsv4::detail::outer_problem<T>{from.view.data, from.view.stride[0], m,           k,
                                                  b.view.data,    b.view.stride[0],    c.view.data, n + 1};
          });
          CHECK(c.gaps_untouched());
        };
        run.template operator()<false>(1, a, one);
        run.template operator()<false>(4, a, four);
        run.template operator()<true>(3, at, transposed);
        INFO("m " << m << ", n " << n << ", k " << k);
        CHECK(error_over_bound(a.view, bt.view, one.view) <= 1);
        bool same = true;
        for (std::int64_t i = 0; i < m; ++i)
          same = same && same_bits(&one.view(i, 0), &four.view(i, 0), n) &&
                 same_bits(&one.view(i, 0), &transposed.view(i, 0), n);
        CHECK(same);
      }
}

TEMPLATE_TEST_CASE("the vectorised exponential is accurate from -inf to 0", "[linear]", float, double) {
  using T = TestType;
  const double eps = double(std::numeric_limits<T>::epsilon());
  for (const auto set : every_set) {
    if (!dsv4::detail::supported(set)) continue;
    INFO("instruction set " << static_cast<int>(set));
    const auto& kernels = dsv4::detail::cpu_kernels<T>(set);
    double worst = 0;
    for (double x = 0; x > -87.25; x -= 0.00371) {
      T s[3] = {T(x), T(0), T(x)}, top = T(0), sum = T(1);
      CHECK(kernels.softmax_step(s, 3, T(1), top, sum) == T(1));
      worst = std::max(worst, std::abs(double(s[2]) / std::exp(double(T(x))) - 1));
      CHECK(s[1] == T(1));
    }
    CHECK(worst <= 2 * eps);
    T s[2] = {-std::numeric_limits<T>::infinity(), T(-2000)}, top = T(0), sum = T(1);
    kernels.softmax_step(s, 2, T(1), top, sum);
    CHECK(s[0] == T(0));
    CHECK(s[1] == T(0));
    CHECK(sum == T(1));
    // A new largest score: what was summed before shrinks by the factor returned.
    T larger[1] = {T(6)};
    top = T(1), sum = T(2);
    CHECK(std::abs(double(kernels.softmax_step(larger, 1, T(0.5), top, sum)) - std::exp(-2.0)) <= eps);
    CHECK(top == T(3));
    CHECK(larger[0] == T(1));
    CHECK(std::abs(double(sum) - (1 + 2 * std::exp(-2.0))) <= 4 * eps);
    T nan[1] = {std::numeric_limits<T>::quiet_NaN()};
    kernels.softmax_step(nan, 1, T(1), top, sum);
    CHECK(std::isnan(nan[0]));
  }
}
