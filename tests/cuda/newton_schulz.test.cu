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

// Sums in another order may round to the other neighbour: each step moves an element of at most 1 by half an
// ulp, 2^-9; ten independent ones by 2^-9 sqrt(10) in the mean, five times that at the worst of some 10^5.
// Sides of 128 and 256 are those of a tile; long rows are summed in parts.
TEMPLATE_TEST_CASE("newton_schulz: bf16 products, cuda equals reference", "", float, double) {
  using T = TestType;
  for (const shape s : {shape{2, 1, 9}, shape{1, 7, 1}, shape{3, 33, 50}, shape{3, 50, 33},
                        shape{2, 130, 200}, shape{1, 260, 129}, shape{2, 128, 256}, shape{1, 64, 1100},
                        shape{2, 129, 2100}, shape{1, 257, 515}, shape{40, 24, 40}}) {
    auto x = random<T>(s.batch * s.rows * s.columns, 3);
    check(x, s, form::standard, products::bf16, 5 * 0x1p-9 * std::sqrt(10.0));
  }
}

TEST_CASE("newton_schulz: rows of large matrices become orthonormal, in bf16 and in place") {
  for (const shape s : {shape{2, 1024, 2048}, shape{3, 700, 1600}, shape{1, 300, 9000}}) {
    INFO(s.batch << " x " << s.rows << " x " << s.columns);
    auto x = random<float>(s.batch * s.rows * s.columns, 8);
    const auto d = x.d(s.batch, s.rows, s.columns);
    const auto y = run_twice(x, [&] {
      newton_schulz<float, D>::forward(gpu(), work(), {.x = d, .products = products::bf16}, {d});
    });
    // Singular values are in 1 +- 6e-3 (tests/train/newton_schulz.test.cpp): so are those of Y Y^T, twice
    // that, and no element of a matrix is larger than its norm.
    double worst = 0;
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t k = 0; k < 600; ++k) {
        const std::int64_t i = k * 37 % s.rows, j = k % 3 ? k * 61 % s.rows : i;
        double sum = i == j ? -1 : 0;
        for (std::int64_t c = 0; c < s.columns; ++c)
          sum += double(y[(b * s.rows + i) * s.columns + c]) * double(y[(b * s.rows + j) * s.columns + c]);
        worst = std::max(worst, std::abs(sum));
      }
    CHECK(worst <= 1.3e-2);
  }
}

TEST_CASE("newton_schulz: zero stays zero on the GPU, strided rows, the Gram form not in bf16") {
  auto zero = twin<float>(buffer<float>(2 * 5 * 8));
  for (const products q : {products::full, products::bf16}) {
    newton_schulz<float, D>::forward(gpu(), work(), {.x = zero.d(2, 5, 8), .products = q}, {zero.d(2, 5, 8)});
    for (float v : zero.fetch()) CHECK(v == 0);
  }
  auto x = near_identity<float>({1, 20, 40}, 6), y = poison<float>(20 * 40);
  const auto part = [](auto v) {
    v.extent[1] = 19, v.extent[2] = 30;
    v.data += 3;
    return v;
  };
  newton_schulz<float>::forward(exec::reference{}, host_work(), {.x = part(x.h(1, 20, 40))},
                                {part(y.h(1, 20, 40))});
  const auto got = run_twice(y, [&] {
    newton_schulz<float, D>::forward(gpu(), work(), {.x = part(x.d(1, 20, 40))}, {part(y.d(1, 20, 40))});
  });
  for (std::int64_t k = 0; k < got.size(); ++k) {
    const std::int64_t i = k / 40, j = k % 40;
    if (i < 19 && j >= 3 && j < 33)
      CHECK(std::abs(double(got[k]) - double(y.host[k])) <= 1e-4);
    else
      CHECK(std::isnan(got[k]));
  }
  CHECK_THROWS_AS((newton_schulz<float, D>::forward(
                      gpu(), work(), {.x = x.d(1, 20, 40), .form = form::gram, .products = products::bf16},
                      {y.d(1, 20, 40)})),
                  contract_error);
}
