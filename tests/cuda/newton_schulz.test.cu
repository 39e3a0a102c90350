// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/train/cuda/newton_schulz.cuh>

#include <algorithm>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
using form = newton_schulz_form;
using products = newton_schulz_products;

struct shape {
  std::int64_t batch, rows, columns;
};

/// The identity, filled up with zeros, and noise of norm at most 0.6: singular values in [0.4, 1.6].
template <class T>
twin<T> near_identity(const shape& s, std::uint64_t seed) {
  buffer<T> b(s.batch * s.rows * s.columns);
  // A matrix of uniform entries of deviation d has norm d (sqrt(rows) + sqrt(columns)) at the most.
  const double size = 0.6 * std::sqrt(3.0) / (std::sqrt(double(s.rows)) + std::sqrt(double(s.columns)));
  for (std::int64_t k = 0; k < b.size(); ++k) {
    const std::int64_t i = k / s.columns % s.rows, j = k % s.columns;
    b[k] = T((i == j ? 1.0 : 0.0) + size * noise(seed, k));
  }
  return twin<T>(std::move(b));
}

template <class T>
void check(twin<T>& x, const shape& s, form f, products q, double limit) {
  INFO(s.batch << " x " << s.rows << " x " << s.columns << (f == form::gram ? ", gram" : ", standard")
               << (q == products::bf16 ? ", bf16" : ""));
  auto y = poison<T>(x.size());
  newton_schulz<T>::forward(exec::reference{}, host_work(),
                            {.x = x.h(s.batch, s.rows, s.columns), .form = f, .products = q},
                            {y.h(s.batch, s.rows, s.columns)});
  check_close(y, limit, [&] {
    newton_schulz<T, D>::forward(gpu(), work(),
                                 {.x = x.d(s.batch, s.rows, s.columns), .form = f, .products = q},
                                 {y.d(s.batch, s.rows, s.columns)});
  });
}
}  // namespace

// An error made in one step grows with the steps by at most norm / the smallest singular value, sqrt(n) / 0.4
// (tests/train/newton_schulz.test.cpp).
TEMPLATE_TEST_CASE("newton_schulz: cuda equals reference", "", float, double) {
  using T = TestType;
  for (const shape s : {shape{1, 1, 1}, shape{2, 1, 9}, shape{1, 7, 1}, shape{3, 5, 3}, shape{2, 17, 33},
                        shape{1, 49, 65}, shape{2, 70, 50}, shape{1, 16, 130}, shape{1, 131, 257}})
    for (const form f : {form::standard, form::gram}) {
      auto x = near_identity<T>(s, 5);
      check(x, s, f, products::full, tolerance<T>(8 * std::sqrt(double(std::min(s.rows, s.columns))) / 0.4));
    }
}

// In the standard form sums in another order may round to the other neighbour: each step moves an element of
// at most 1 by half an ulp, 2^-9; ten independent ones by 2^-9 sqrt(10) in the mean, five times that at the
// worst of some 10^5. In the Gram form half an ulp is 2^-12, and an error of R grows at most 3.4445^2 times
// in each of the two steps before R is made anew: of the singular values, 3.4445^2 in all. Sides of 128, 160,
// 192 and 256 are those of a tile; long rows are summed in parts.
TEMPLATE_TEST_CASE("newton_schulz: bf16 products, cuda equals reference", "", float, double) {
  using T = TestType;
  for (const shape s : {shape{2, 1, 9}, shape{1, 7, 1}, shape{3, 33, 50}, shape{3, 50, 33},
                        shape{2, 130, 200}, shape{1, 260, 129}, shape{2, 128, 256}, shape{1, 64, 1100},
                        shape{2, 129, 2100}, shape{1, 257, 515}, shape{40, 24, 40}, shape{1, 270, 280}}) {
    auto x = random<T>(s.batch * s.rows * s.columns, 3);
    check(x, s, form::standard, products::bf16, 5 * 0x1p-9 * std::sqrt(10.0));
    check(x, s, form::gram, products::bf16, 5 * 0x1p-12 * 3.4445 * 3.4445 * std::sqrt(10.0));
  }
}

TEST_CASE("newton_schulz: rows of large matrices become orthonormal, in bf16 and in place") {
  for (const form f : {form::standard, form::gram})
    for (const shape s : {shape{2, 1024, 2048}, shape{3, 700, 1600}, shape{1, 300, 9000}, shape{1, 2304, 640},
                          shape{70, 520, 600}}) {
      INFO(s.batch << " x " << s.rows << " x " << s.columns << (f == form::gram ? ", gram" : ", standard"));
      auto x = random<float>(s.batch * s.rows * s.columns, 8);
      const auto d = x.d(s.batch, s.rows, s.columns);
      const auto y = run_twice(x, [&] {
        newton_schulz<float, D>::forward(gpu(), work(), {.x = d, .form = f, .products = products::bf16}, {d});
      });
      // Singular values are in 1 +- 6e-3, and 1 +- 1.5e-3 in the Gram form, whose operands have three more
      // bits, 5.4e-4 being the steps' own (tests/train/newton_schulz.test.cpp): so are those of Y Y^T, twice
      // that, and no element of a matrix is larger than its norm.
      const bool tall = s.rows > s.columns;
      const std::int64_t n = tall ? s.columns : s.rows, m = tall ? s.rows : s.columns;
      const auto at = [&](std::int64_t b, std::int64_t i, std::int64_t c) {
        return double(y[b * n * m + (tall ? c * n + i : i * m + c)]);
      };
      double worst = 0;
      for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t k = 0; k < (s.batch > 3 ? 30 : 600); ++k) {
          const std::int64_t i = k * 37 % n, j = k % 3 ? k * 61 % n : i;
          double sum = i == j ? -1 : 0;
          for (std::int64_t c = 0; c < m; ++c) sum += at(b, i, c) * at(b, j, c);
          worst = std::max(worst, std::abs(sum));
        }
      CHECK(worst <= (f == form::gram ? 3.1e-3 : 1.3e-2));
    }
}

// What singular values become. a I + B is rounded in every step, by at most half an ulp of what lies
// between 2 and 4, relatively 2^-11.
TEST_CASE("newton_schulz: what a singular value becomes, in the Gram form in half precision") {
  struct row {
    double sigma, after;
  };
  for (const row& r :
       {row{1, 1.00001431}, row{0.9, 1.00000112}, row{0.7, 1.00046725}, row{0.5, 1.00016323},
        row{0.3, 1.00012992}, row{0.1, 1.00006071}, row{1e-2, 1.00001916}, row{1e-3, 1.00000121},
        row{1e-4, 1.00201479}, row{3e-5, 1.00175275}, row{1e-5, 0.68582712}, row{1e-6, 0.07914228}}) {
    INFO("sigma " << r.sigma);
    buffer<float> b(6);
    b[0] = float(r.sigma), b[4] = float(std::sqrt(1 - r.sigma * r.sigma));
    twin<float> x(std::move(b));
    newton_schulz<float, D>::forward(
        gpu(), work(), {.x = x.d(1, 2, 3), .form = form::gram, .products = products::bf16}, {x.d(1, 2, 3)});
    const auto y = x.fetch();
    CHECK(std::abs(double(y[0]) - r.after) <= 10 * 0x1p-11);
    for (int i : {1, 2, 3, 5}) CHECK(y[i] == 0);
  }
}

TEST_CASE("newton_schulz: zero stays zero on the GPU, strided rows") {
  auto zero = twin<float>(buffer<float>(2 * 5 * 8));
  for (const form f : {form::standard, form::gram})
    for (const products q : {products::full, products::bf16}) {
      newton_schulz<float, D>::forward(gpu(), work(), {.x = zero.d(2, 5, 8), .form = f, .products = q},
                                       {zero.d(2, 5, 8)});
      for (float v : zero.fetch()) CHECK(v == 0);
    }
  const auto part = [](auto v) {
    v.extent[1] = 19, v.extent[2] = 30;
    v.data += 3;
    return v;
  };
  for (const products q : {products::full, products::bf16}) {
    auto x = near_identity<float>({1, 20, 40}, 6), y = poison<float>(20 * 40);
    newton_schulz<float>::forward(exec::reference{}, host_work(),
                                  {.x = part(x.h(1, 20, 40)), .form = form::gram, .products = q},
                                  {part(y.h(1, 20, 40))});
    const auto got = run_twice(y, [&] {
      newton_schulz<float, D>::forward(gpu(), work(),
                                       {.x = part(x.d(1, 20, 40)), .form = form::gram, .products = q},
                                       {part(y.d(1, 20, 40))});
    });
    const double limit =
        q == products::full ? 1e-4 : 5 * 0x1p-12 * 3.4445 * 3.4445 * std::sqrt(10.0);  // as above
    for (std::int64_t k = 0; k < got.size(); ++k) {
      const std::int64_t i = k / 40, j = k % 40;
      if (i < 19 && j >= 3 && j < 33)
        CHECK(std::abs(double(got[k]) - double(y.host[k])) <= limit);
      else
        CHECK(std::isnan(got[k]));
    }
  }
}

// Three more bits make a rounding an eighth; that errors grow between restarts must not cost more than half
// of that.
TEST_CASE("newton_schulz: in 16 bits the Gram form is closer to the exact result than the standard one") {
  for (const shape s : {shape{1, 96, 160}, shape{1, 200, 100}}) {
    auto x = random<double>(s.rows * s.columns, 11);
    auto exact = poison<double>(x.size()), y = poison<double>(x.size());
    newton_schulz<double>::forward(exec::reference{}, host_work(), {.x = x.h(1, s.rows, s.columns)},
                                   {exact.h(1, s.rows, s.columns)});
    const auto miss = [&](form f) {
      newton_schulz<double, D>::forward(
          gpu(), work(), {.x = x.d(1, s.rows, s.columns), .form = f, .products = products::bf16},
          {y.d(1, s.rows, s.columns)});
      const auto got = y.fetch();
      double sum = 0;
      for (std::int64_t i = 0; i < got.size(); ++i) sum += std::pow(got[i] - exact.host[i], 2);
      return std::sqrt(sum);
    };
    CHECK(miss(form::gram) < miss(form::standard) / 4);
  }
}
