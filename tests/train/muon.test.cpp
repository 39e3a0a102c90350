// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/train/cpu/muon.hpp>

#include <cmath>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// `count` matrices with weights, gradients and momenta of their own.
template <class T, class M = T>
struct problem {
  std::int64_t count, rows, columns;
  buffer<T> weight, gradient;
  buffer<M> momentum;
  problem(std::int64_t n, std::int64_t r, std::int64_t c)
      : count(n),
        rows(r),
        columns(c),
        weight(random<T>(n * r * c, 1)),
        gradient(random<T>(n * r * c, 2)),
        momentum(n * r * c) {}

  std::vector<muon_matrix<T, M>> matrices() {
    std::vector<muon_matrix<T, M>> all;
    for (std::int64_t b = 0; b < count; ++b)
      all.push_back({weight.as(count, rows, columns)[b], gradient.as(count, rows, columns)[b],
                     momentum.as(count, rows, columns)[b]});
    return all;
  }
  template <class P>
  void step(const P& p, double lr, const muon_options& options = {}, double scale = 1) {
    workspace w;
    const auto all = matrices();
    muon<T, M>(p, w, std::span<const muon_matrix<T, M>>(all), lr, options, scale);
  }
};

buffer<double> orthogonalised(const buffer<double>& u, std::int64_t rows, std::int64_t columns) {
  workspace w;
  buffer<double> o(u.size());
  newton_schulz<double>::forward(exec::reference{}, w, {.x = u.as(1, rows, columns)},
                                 {o.as(1, rows, columns)});
  return o;
}
}  // namespace

TEST_CASE("muon: the algorithm, step by step") {
  const std::int64_t n = 6, m = 10;
  for (bool nesterov : {true, false}) {
    problem<double> a(1, n, m);
    muon_options options;
    options.nesterov = nesterov;
    auto w = copy(a.weight), momentum = buffer<double>(n * m), u = buffer<double>(n * m);
    const double lr = 0.01, scale = 0.5, factor = 0.18 * std::sqrt(10.0);
    for (int step = 0; step < 3; ++step) {
      a.gradient = random<double>(n * m, 20 + static_cast<std::uint64_t>(step));
      for (std::int64_t i = 0; i < n * m; ++i) {
        momentum[i] = 0.95 * momentum[i] + scale * a.gradient[i];  // a sum, not a mean
        u[i] = nesterov ? 0.95 * momentum[i] + scale * a.gradient[i] : momentum[i];
      }
      const auto o = orthogonalised(u, n, m);
      for (std::int64_t i = 0; i < n * m; ++i) w[i] = (1 - lr * 0.1) * w[i] - lr * factor * o[i];
      a.step(exec::reference{}, lr, options, scale);
      CHECK(relative_error(a.momentum, momentum) < 1e-15);
      CHECK(relative_error(a.weight, w) < 1e-13);
    }
  }
}

TEST_CASE("muon: the update's root mean square is 0.18 whatever the shape") {
  struct shape {
    std::int64_t rows, columns;
  };
  for (const shape s : {shape{64, 64}, shape{32, 200}, shape{200, 32}, shape{4, 384}}) {
    problem<float> a(1, s.rows, s.columns);
    const auto before = copy(a.weight);
    muon_options options;
    options.weight_decay = 0;
    a.step(exec::cpu(1), 1, options);
    double sum = 0;
    for (std::int64_t i = 0; i < before.size(); ++i)
      sum += std::pow(double(before[i]) - double(a.weight[i]), 2);
    // Singular values in [1, 1.00054] and the rounding of weights up to 1 by a step of 0.18.
    CHECK(std::abs(std::sqrt(sum / double(before.size())) - 0.18) < 0.18 * 0.00054 + 1e-6);
  }
  muon_options spectral;
  spectral.scale_mode = muon_scale::spectral;
  CHECK(spectral.factor(200, 50) == 2);
  CHECK(spectral.factor(50, 200) == 1);
  CHECK(muon_options{}.factor(50, 200) == Catch::Approx(0.18 * std::sqrt(200.0)));
}

TEMPLATE_TEST_CASE("muon: cpu equals reference; threads and batches do not change a bit", "", float, double) {
  using T = TestType;
  const std::int64_t count = 5, n = 20, m = 33;
  problem<T> reference(count, n, m), one(count, n, m), three(count, n, m), parts(count, n, m);
  muon_options small;
  small.batch_bytes = 2 * n * m * std::int64_t{sizeof(T)};  // two at once
  for (int step = 0; step < 3; ++step) {
    for (auto* a : {&reference, &one, &three, &parts})
      a->gradient = random<T>(count * n * m, 30 + static_cast<std::uint64_t>(step));
    reference.step(exec::reference{}, 0.01);
    one.step(exec::cpu(1), 0.01);
    three.step(exec::cpu(3), 0.01);
    parts.step(exec::cpu(2), 0.01, small);
  }
  CHECK(same(one.weight, three.weight));
  CHECK(same(one.weight, parts.weight));
  CHECK(same(one.momentum, parts.momentum));
  CHECK(relative_error(one.momentum, reference.momentum) <= rounding<T>(3 * 3));
  // Random 20 x 33 matrices have condition numbers of about 10: see newton_schulz.test.cpp; three steps of
  // 0.01 factor, 1.03 together, times that.
  CHECK(relative_error(one.weight, reference.weight) <= rounding<T>(3 * 0.0103 * 8 * 100 + 6));
}

TEST_CASE("muon: momentum in bf16 is rounded once a step, and the rounded one looks ahead") {
  const std::int64_t n = 8, m = 12;
  problem<float, bf16> a(1, n, m);
  problem<float> exact(1, n, m);
  a.step(exec::cpu(2), 0.01);
  exact.step(exec::cpu(2), 0.01);
  for (std::int64_t i = 0; i < n * m; ++i) {
    REQUIRE(a.momentum[i] == bf16(a.gradient[i]));
    REQUIRE(exact.momentum[i] == exact.gradient[i]);
  }
  const auto first = a.momentum.data()[3];
  const float g = a.gradient[3];
  a.step(exec::cpu(1), 0.01);
  CHECK(a.momentum.data()[3] == bf16(0.95f * float(first) + g));
  CHECK_FALSE(same(a.weight, exact.weight));

  problem<float, bf16> reference(1, n, m), cpu(1, n, m);
  reference.step(exec::reference{}, 0.01);
  cpu.step(exec::cpu(1), 0.01);
  CHECK(relative_error(cpu.weight, reference.weight) <= rounding<float>(0.0103 * 8 * 100 + 3));
}

TEST_CASE("muon: what it refuses") {
  problem<float> a(2, 3, 4);
  workspace w;
  auto all = a.matrices();
  all[1].gradient = matrix_view<const float>(a.gradient.data(), 4, 3);
  CHECK_THROWS_WITH((muon<float, float>(exec::cpu(1), w, std::span<const muon_matrix<float>>(all), 0.1)),
                    contains("muon: rows: expected 3, found 4"));
}
