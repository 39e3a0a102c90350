// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/train/cpu/newton_schulz.hpp>

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
using form = newton_schulz_form;
using products = newton_schulz_products;
using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

double after(std::span<const newton_schulz_step> steps, double x) {
  for (const auto& step : steps) x = step(x);
  return x;
}

/// About normal numbers: sums of twelve uniform ones.
template <class T>
buffer<T> normal(std::int64_t count, std::uint64_t seed) {
  const auto uniform = random<double>(12 * count, seed, 0.5);
  buffer<T> b(count);
  for (std::int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < 12; ++j) sum += uniform[12 * i + j];
    b[i] = T(sum);
  }
  return b;
}

/// rows x columns with singular values from 1 down to `smallest`, evenly spaced in the logarithm.
template <class T>
buffer<T> spectrum(std::int64_t rows, std::int64_t columns, double smallest, std::uint64_t seed = 1) {
  const auto basis = [&](std::int64_t n, std::uint64_t s) {
    const auto g = normal<double>(n * n, s);
    return matrix(Eigen::HouseholderQR<matrix>(Eigen::Map<const matrix>(g.data(), n, n)).householderQ());
  };
  const std::int64_t n = std::min(rows, columns);
  Eigen::VectorXd sigma(n);
  for (std::int64_t i = 0; i < n; ++i) sigma(i) = n == 1 ? 1 : std::pow(smallest, double(i) / double(n - 1));
  const matrix x = basis(rows, seed).leftCols(n) * sigma.asDiagonal() * basis(columns, seed + 1).topRows(n);
  buffer<T> b(rows * columns);
  for (std::int64_t i = 0; i < b.size(); ++i) b[i] = T(x.data()[i]);
  return b;
}

/// {smallest, largest}
template <class T>
std::pair<double, double> singular_values(const buffer<T>& b, std::int64_t rows, std::int64_t columns) {
  matrix x(rows, columns);
  for (std::int64_t i = 0; i < b.size(); ++i) x.data()[i] = double(b[i]);
  const Eigen::VectorXd s = Eigen::JacobiSVD<matrix>(x).singularValues();
  return {s(s.size() - 1), s(0)};
}

template <class T, class P>
buffer<T> run(const P& p, const buffer<T>& x, std::int64_t batch, std::int64_t rows, std::int64_t columns,
              form f = form::automatic, products q = products::full,
              std::span<const newton_schulz_step> steps = newton_schulz_hybrid, int restart = 0) {
  workspace w;
  auto y = poison<T>(x.size());
  newton_schulz<T>::forward(
      p, w, {.x = x.as(batch, rows, columns), .steps = steps, .form = f, .products = q, .restart = restart},
      {y.as(batch, rows, columns)});
  return y;
}

double root_mean_square(const buffer<float>& b) {
  double sum = 0;
  for (float v : b) sum += double(v) * double(v);
  return std::sqrt(sum / double(b.size()));
}
}  // namespace

TEST_CASE("newton_schulz: what a singular value becomes") {
  struct row {
    double sigma, jordan, after8, after9, after10;
  };
  const row table[] = {
      {1, 0.696436, 1.081024, 1.005254, 1.00001431},    {0.9, 0.682011, 1.047147, 1.001491, 1.00000112},
      {0.7, 1.120323, 0.688858, 0.964952, 1.00046725},  {0.5, 0.765439, 1.130584, 1.017066, 1.00016323},
      {0.3, 1.079592, 0.739003, 0.982829, 1.00012992},  {0.1, 0.712120, 1.108161, 1.010628, 1.00006071},
      {1e-2, 0.698917, 1.085997, 1.006063, 1.00001916}, {1e-3, 0.470544, 0.917930, 1.001545, 1.00000121},
      {1e-4, 0.048473, 1.202327, 1.053816, 1.00201479}, {3e-5, 0.014546, 0.568253, 0.890889, 1.00175275},
      {1e-5, 0.004849, 0.197167, 0.382985, 0.68582712}, {1e-6, 0.000485, 0.019815, 0.039618, 0.07914228}};
  const std::span<const newton_schulz_step> hybrid = newton_schulz_hybrid;
  for (const row& r : table) {
    INFO("sigma " << r.sigma);
    CHECK(std::abs(after(newton_schulz_jordan, r.sigma) - r.jordan) < 5.1e-7);  // the digits that are given
    CHECK(std::abs(after(hybrid.first(8), r.sigma) - r.after8) < 5.1e-7);
    CHECK(std::abs(after(hybrid.first(9), r.sigma) - r.after9) < 5.1e-7);
    CHECK(std::abs(after(hybrid, r.sigma) - r.after10) < 5.1e-9);

    // The matrix diag(sigma, sqrt(1 - sigma^2), 0) has Frobenius norm 1 and goes the same way.
    buffer<double> x(6);
    x[0] = r.sigma, x[4] = std::sqrt(1 - r.sigma * r.sigma);
    for (form f : {form::standard, form::gram}) {
      const auto y = run(exec::cpu(1), x, 1, 2, 3, f);
      CHECK(std::abs(y[0] - r.after10) < 1e-6);  // epsilon = 1e-7 shrinks the input by as much
      for (int i : {1, 2, 3, 5}) CHECK(y[i] == 0);
    }
    // In half precision a I + B is rounded in every step, by at most half an ulp of what lies between 2
    // and 4.
    const auto y = run(exec::cpu(1), x, 1, 2, 3, form::gram, products::bf16);
    CHECK(std::abs(y[0] - r.after10) <= 10 * 0x1p-11);
    for (int i : {1, 2, 3, 5}) CHECK(y[i] == 0);
  }
}

TEST_CASE("newton_schulz: the two polynomials") {
  const auto& first = newton_schulz_hybrid[0];
  const auto& second = newton_schulz_hybrid[9];
  CHECK(first(1) == Catch::Approx(0.701).epsilon(1e-14));
  for (double x : {0.8680257976555313, 1.263729067298377}) CHECK(first(x) == Catch::Approx(x).epsilon(1e-13));
  CHECK(first(0.5545287908544945) == Catch::Approx(1.2023686051632128).epsilon(1e-14));
  CHECK(first(1.050136079121016) == Catch::Approx(0.6818314621771844).epsilon(1e-14));
  CHECK(second(1) == 1);
  const double e = 1e-4;
  CHECK(std::abs(second(1 + e) - (1 + e * e / 2 + 3.5 * e * e * e)) < 1e-15);  // no slope: quadratic

  // What is at least 3e-4, or 5e-5, of the norm ends in these bands.
  for (const auto& [least, top] : {std::pair{3e-4, 1.00053806}, std::pair{5e-5, 1.00201734}}) {
    double low = 2, high = 0;
    for (int i = 0; i <= 200000; ++i) {
      const double y = after(newton_schulz_hybrid, least * std::pow(1 / least, i / 200000.0));
      low = std::min(low, y), high = std::max(high, y);
    }
    CHECK(low >= 1);
    CHECK(std::abs(high - top) < 2e-8);
  }
  for (const auto& [input, reached] : {std::pair{6.75e-6, 0.5}, std::pair{1.59e-5, 0.9},
                                       std::pair{2.31e-5, 0.99}, std::pair{2.61e-5, 0.999}}) {
    CHECK(after(newton_schulz_hybrid, input * 1.005) > reached);
    CHECK(after(newton_schulz_hybrid, input * 0.995) < reached);
  }
}

TEST_CASE("newton_schulz: other coefficients go where their authors say") {
  double low = 2, high = 0;
  for (int i = 0; i <= 10000; ++i) {
    const double y = after(newton_schulz_jordan, 1e-2 * std::pow(100, i / 10000.0));
    low = std::min(low, y), high = std::max(high, y);
  }
  CHECK(low > 0.68);
  CHECK(high < 1.21);
  for (const auto steps : {std::span<const newton_schulz_step>(newton_schulz_you),
                           std::span<const newton_schulz_step>(newton_schulz_polar_express)})
    for (double x : {0.01, 0.03, 0.1, 0.3, 0.9}) {
      CHECK(after(steps, x) > 0.7);
      CHECK(after(steps, x) < 1.3);
    }
}

TEST_CASE("newton_schulz: singular values and size of the update of a Gaussian matrix") {
  const std::int64_t n = 64, m = 256;
  const auto x = normal<float>(n * m, 3);
  const exec::cpu p(2);
  for (form f : {form::standard, form::gram}) {
    const auto [low, high] = singular_values(run(p, x, 1, n, m, f), n, m);
    CHECK(low > 1 - 3e-6);  // 1 by the guarantee, less what 64-term float products lose
    CHECK(high < 1.00053806 + 3e-6);
  }
  const auto rounded = singular_values(run(p, x, 1, n, m, form::standard, products::bf16), n, m);
  CHECK(std::abs(rounded.first - 1) < 6e-3);
  CHECK(std::abs(rounded.second - 1) < 6e-3);
  // Three more bits; the steps themselves end in [1, 1.00053806].
  const auto half = singular_values(run(p, x, 1, n, m, form::gram, products::bf16), n, m);
  CHECK(std::abs(half.first - 1) < 6e-3 / 8 + 5.4e-4);
  CHECK(std::abs(half.second - 1) < 6e-3 / 8 + 5.4e-4);
  const auto jordan = run(p, x, 1, n, m, form::gram, products::full, newton_schulz_jordan);
  const auto [low, high] = singular_values(jordan, n, m);
  CHECK(low > 0.68);
  CHECK(high < 1.14);
  CHECK(high - low > 0.3);  // never converges

  // Only the hybrid delivers the advertised root mean square: 0.18 after scaling by 0.18 sqrt(max).
  const double scale = 0.18 * std::sqrt(double(m));
  CHECK(std::abs(scale * root_mean_square(run(p, x, 1, n, m)) - 0.18) < 3e-4);
  CHECK(scale * root_mean_square(jordan) < 0.165);
}

TEMPLATE_TEST_CASE("newton_schulz: cpu equals reference", "", float, double) {
  using T = TestType;
  struct shape {
    std::int64_t rows, columns;
  };
  for (const shape s : {shape{1, 1}, shape{1, 9}, shape{7, 1}, shape{5, 3}, shape{17, 33}, shape{49, 65},
                        shape{70, 50}, shape{16, 130}})
    for (form f : {form::standard, form::gram}) {
      INFO(s.rows << " x " << s.columns << (f == form::gram ? ", gram" : ", standard"));
      const auto x = spectrum<T>(s.rows, s.columns, 0.01);
      const auto want = run(exec::reference{}, x, 1, s.rows, s.columns, f);
      const auto got = run(exec::cpu(2), x, 1, s.rows, s.columns, f);
      // An error made in one step grows with the steps by at most 1 / (0.01 / norm): that is how far apart
      // the smallest and the largest singular value start.
      CHECK(relative_error(got, want) <= rounding<T>(8 / 0.01));
    }
}

TEST_CASE("newton_schulz: bf16 products, cpu and reference") {
  const auto x = spectrum<float>(33, 50, 0.2);
  const auto want = run(exec::reference{}, x, 1, 33, 50, form::standard, products::bf16);
  const auto got = run(exec::cpu(1), x, 1, 33, 50, form::standard, products::bf16);
  // Sums in another order may round to the other neighbour: each step moves an element of at most 1 by half
  // an ulp, 2^-9; ten independent ones by 2^-9 sqrt(10) in the mean, four times that at the worst of 1650.
  CHECK(relative_error(got, want) < 4 * 0x1p-9 * std::sqrt(10.0));
  for (float v : got) CHECK(v == float(bf16(v)));
  const auto exact = run(exec::cpu(1), x, 1, 33, 50);
  CHECK(relative_error(got, exact) > 1e-4);  // and it did round

  // In half precision an ulp is an eighth; an error of R grows at most 3.4445^2 times, of the singular
  // values, before R is made anew.
  const auto half = run(exec::cpu(1), x, 1, 33, 50, form::gram, products::bf16);
  const auto half_want = run(exec::reference{}, x, 1, 33, 50, form::gram, products::bf16);
  CHECK(relative_error(half, half_want) < 4 * 0x1p-12 * 3.4445 * 3.4445 * std::sqrt(10.0));
  for (float v : half) CHECK(v == detail::rounded_operand(v, products::bf16, form::gram));
  CHECK(relative_error(half, exact) > 1e-5);
}

TEST_CASE("newton_schulz: in 16 bits the Gram form is closer to the exact result than the standard one") {
  struct shape {
    std::int64_t rows, columns;
    double smallest;
  };
  // Conditions from 10 to 10^4; and one large singular value, the others a thousandth of it.
  for (const shape s : {shape{48, 80, 0.1}, shape{64, 64, 0.01}, shape{40, 200, 1e-4}, shape{48, 96, 0}}) {
    INFO(s.rows << " x " << s.columns << ", " << s.smallest);
    auto x = spectrum<float>(s.rows, s.columns, s.smallest > 0 ? s.smallest : 1);
    if (s.smallest == 0)
      for (std::int64_t i = 0; i < s.rows; ++i)
        for (std::int64_t j = 0; j < s.columns; ++j)
          x[i * s.columns + j] += 1000 / std::sqrt(float(s.rows) * float(s.columns));
    const auto exact = run(exec::cpu(1), x, 1, s.rows, s.columns);
    const auto miss = [&](form f) {
      const auto y = run(exec::cpu(1), x, 1, s.rows, s.columns, f, products::bf16);
      double sum = 0;
      for (std::int64_t i = 0; i < y.size(); ++i) sum += std::pow(double(y[i]) - double(exact[i]), 2);
      return std::sqrt(sum);
    };
    CHECK(miss(form::gram) < miss(form::standard) / 2);
  }
}

TEST_CASE("newton_schulz: operands of half precision") {
  const auto half = [](auto v) { return detail::rounded_operand(v, products::bf16, form::gram); };
  CHECK(half(1 + 0x1p-11) == 1);  // ties to even
  CHECK(half(1 + 3 * 0x1p-11) == 1 + 0x1p-9);
  CHECK(half(1 + 0x1p-11 + 0x1p-40) == 1 + 0x1p-10);
  CHECK(half(-1 - 0x1p-11 - 0x1p-40) == -1 - 0x1p-10);
  CHECK(half(2 - 0x1p-12) == 2);
  CHECK(half(1.5f) == 1.5f);
  CHECK(half(1 + 0x1p-11f) == 1);
  CHECK(half(0x1.ffcp-90f) == 0x1.ffcp-90f);  // of any size
  CHECK(half(0.0) == 0);
  CHECK(detail::rounded_operand(0.1, products::full, form::gram) == 0.1);
  CHECK(detail::rounded_operand(0.1, products::bf16, form::standard) == double(bf16(0.1)));
}

#if DSV4_X86_KERNELS
TEST_CASE("newton_schulz: the bf16 instruction, and what machines without it do") {
  if (!detail::newton_schulz_avx512::supported()) return;
  struct shape {
    std::int64_t rows, columns;
  };
  for (const shape s : {shape{1, 1}, shape{2, 1}, shape{3, 5}, shape{33, 50}, shape{50, 33}, shape{47, 49},
                        shape{130, 200}, shape{70, 1100}}) {
    INFO(s.rows << " x " << s.columns);
    const auto x = spectrum<float>(s.rows, s.columns, 0.2);
    const auto fast = run(exec::cpu(1), x, 1, s.rows, s.columns, form::standard, products::bf16);
    CHECK(same(fast, run(exec::cpu(3), x, 1, s.rows, s.columns, form::standard, products::bf16)));
    const newton_schulz<float>::inputs in{.x = x.as(1, s.rows, s.columns), .products = products::bf16};
    using iteration = detail::newton_schulz_iteration<float>;
    buffer<float> scratch(iteration::scratch(in));
    auto slow = poison<float>(x.size());
    iteration(in, {nullptr}, scratch.data())(in.x[0], slow.as(s.rows, s.columns),
                                             detail::newton_schulz_factor<float>(in.x[0], in.epsilon));
    // As above: sums in another order, then rounded.
    CHECK(relative_error(fast, slow) < 4 * 0x1p-9 * std::sqrt(10.0));
    for (float v : fast) CHECK(v == float(bf16(v)));
  }
}
#endif

TEST_CASE("newton_schulz: the same bits for any number of threads, and in any batch") {
  struct shape {
    std::int64_t batch, rows, columns;
  };
  for (const shape s : {shape{5, 40, 72}, shape{1, 130, 200}, shape{3, 90, 20}})
    for (const auto& [f, q] :
         {std::pair{form::standard, products::full}, std::pair{form::gram, products::full},
          std::pair{form::standard, products::bf16}, std::pair{form::gram, products::bf16}}) {
      const auto x = random<float>(s.batch * s.rows * s.columns, 7);
      const auto one = run(exec::cpu(1), x, s.batch, s.rows, s.columns, f, q);
      for (int threads : {2, 3, 4, 8})
        CHECK(same(one, run(exec::cpu(threads), x, s.batch, s.rows, s.columns, f, q)));
      const std::int64_t each = s.rows * s.columns;
      for (std::int64_t b = 0; b < s.batch; ++b) {
        buffer<float> alone(each);
        std::copy_n(x.data() + b * each, each, alone.data());
        const auto y = run(exec::cpu(2), alone, 1, s.rows, s.columns, f, q);
        for (std::int64_t i = 0; i < each; ++i) REQUIRE(y[i] == one[b * each + i]);
      }
    }
}

TEST_CASE("newton_schulz: a tall matrix is the transposed of a wide one") {
  const std::int64_t n = 30, m = 77;
  const auto wide = random<double>(n * m, 5);
  buffer<double> tall(n * m);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < m; ++j) tall[j * n + i] = wide[i * m + j];
  for (form f : {form::standard, form::gram}) {
    const auto a = run(exec::cpu(2), wide, 1, n, m, f), b = run(exec::cpu(2), tall, 1, m, n, f);
    // The norms are summed in another order.
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < m; ++j) REQUIRE(std::abs(a[i * m + j] - b[j * n + i]) < 1e-12);
  }
}

TEST_CASE("newton_schulz: the Gram form needs its restarts") {
  const auto x = spectrum<float>(64, 96, 1e-4);
  const auto want = run(exec::cpu(1), spectrum<double>(64, 96, 1e-4), 1, 64, 96, form::standard);
  const auto distance = [&](const buffer<float>& y) {
    double worst = 0;
    for (std::int64_t i = 0; i < y.size(); ++i) worst = std::max(worst, std::abs(double(y[i]) - want[i]));
    return worst;
  };
  const double standard = distance(run(exec::cpu(1), x, 1, 64, 96, form::standard));
  const auto gram = [&](int restart) {
    return distance(
        run(exec::cpu(1), x, 1, 64, 96, form::gram, products::full, newton_schulz_hybrid, restart));
  };
  for (int restart : {0, 1, 2, 3, 4}) CHECK(gram(restart) < 2 * standard);
  CHECK(!(gram(10) < 1000 * standard));  // negative eigenvalues of R have grown
}

TEST_CASE("newton_schulz: zero stays zero, y may be x, the scale of x does not matter") {
  workspace w;
  buffer<float> zero(12);
  newton_schulz<float>::forward(exec::cpu(1), w, {.x = zero.as(1, 3, 4)}, {zero.as(1, 3, 4)});
  for (float v : zero) CHECK(v == 0);

  auto x = random<float>(2 * 20 * 30, 9);
  const auto y = run(exec::cpu(1), x, 2, 20, 30);
  newton_schulz<float>::forward(exec::cpu(1), w, {.x = x.as(2, 20, 30)}, {x.as(2, 20, 30)});
  CHECK(same(x, y));

  // A gradient as small as 1e-20 is far below epsilon; without it the direction alone counts.
  auto small = random<float>(20 * 30, 9), large = random<float>(20 * 30, 9);
  for (float& v : small) v *= 0x1p-80f;
  for (float& v : large) v *= 0x1p80f;
  for (auto* b : {&small, &large})
    newton_schulz<float>::forward(exec::cpu(1), w, {.x = b->as(1, 20, 30), .epsilon = 0}, {b->as(1, 20, 30)});
  CHECK(same(small, large));
}

TEST_CASE("newton_schulz: the form depends on the shape alone") {
  CHECK(faster_form(64, 64) == form::standard);
  CHECK(faster_form(64, 256) == form::gram);
  CHECK(faster_form(256, 64) == form::gram);
  CHECK(faster_form(512, 576) == form::gram);
  CHECK(faster_form(512, 575) == form::standard);
  CHECK(faster_form(64, 256, products::bf16) == form::standard);
  CHECK(faster_form(64, 256, products::bf16, space::device) == form::gram);
  CHECK(faster_form(64, 64, products::bf16, space::device) == form::standard);
}

TEST_CASE("newton_schulz: what it refuses") {
  workspace w;
  buffer<float> x(12), y(12);
  CHECK_THROWS_WITH(newton_schulz<float>::forward(exec::cpu(1), w, {.x = x.as(1, 3, 4)}, {y.as(1, 4, 3)}),
                    contains("newton_schulz: y rows: expected 3, found 4"));
}
