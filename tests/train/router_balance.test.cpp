// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/train/cpu/router_balance.hpp>

#include <cmath>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// The k best experts of every row, unbiased.
std::vector<std::int32_t> chosen(const buffer<double>& logits, std::int64_t rows, std::int64_t experts,
                                 std::int64_t k, const std::vector<double>& bias = {}) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(rows * k));
  buffer<double> b(experts), weights(rows * k);
  for (std::size_t e = 0; e < bias.size(); ++e) b[static_cast<std::int64_t>(e)] = bias[e];
  route<double>::forward(exec::reference{}, {logits.as(rows, experts), b.as(experts), {}, {}, 1},
                         {{out.data(), rows, k}, weights.as(rows, k)});
  return out;
}

template <class P>
double loss(const P& p, const buffer<double>& logits, std::int64_t experts,
            const std::vector<std::int32_t>& e, std::int64_t k, const std::vector<std::int64_t>& offsets,
            double scale, matrix_view<double> dlogits = {}) {
  workspace w;
  double value = -1;
  const std::int64_t rows = logits.size() / experts;
  sequence_balance<double>::forward(p, w,
                                    {logits.as(rows, experts),
                                     {e.data(), rows, k},
                                     {offsets.data(), static_cast<std::int64_t>(offsets.size())},
                                     scale},
                                    {{&value, 1}, dlogits});
  return value;
}
}  // namespace

TEST_CASE("router_balance: the sign rule") {
  double bias[] = {0, 0.5, -0.25, 1};
  const std::int64_t loads[] = {3, 1, 2, 2};  // mean 2
  update_router_bias<double>({bias, 4}, {loads, 4}, 0.125);
  CHECK(bias[0] == -0.125);
  CHECK(bias[1] == 0.625);
  CHECK(bias[2] == -0.25);  // at the mean: sign(0) = 0
  CHECK(bias[3] == 1);
  const std::int64_t none[] = {0, 0, 0, 0};
  update_router_bias<double>({bias, 4}, {none, 4}, 0.125);
  CHECK(bias[0] == -0.125);
  const std::int64_t uneven[] = {1, 0, 0};  // mean 1/3, which no double holds
  float small[] = {0, 0, 0};
  update_router_bias<float>({small, 3}, {uneven, 3});
  CHECK(small[0] == -1e-3f);
  CHECK(small[1] == 1e-3f);
  CHECK_THROWS_WITH(update_router_bias<float>({small, 3}, {loads, 4}),
                    contains("update_router_bias: loads: expected 3, found 4"));
}

TEST_CASE("router_balance: loads and their statistics") {
  const std::int32_t experts[] = {0, 1, 0, -1, 3, 0};
  std::int64_t loads[4] = {};
  count_loads({experts, 3, 2}, {loads, 4});
  count_loads({experts, 1, 2}, {loads, 4});  // a second micro-batch
  CHECK(loads[0] == 4);
  CHECK(loads[1] == 2);
  CHECK(loads[2] == 0);
  CHECK(loads[3] == 1);
  const auto s = balance_of({loads, 4});
  CHECK(s.max_over_mean == Catch::Approx(4 / 1.75));
  CHECK(s.min_over_mean == 0);
  CHECK(s.unused == 1);
  std::int64_t three[3] = {};
  CHECK_THROWS_WITH(count_loads({experts, 3, 2}, {three, 3}), contains("count_loads: experts[2]"));
}

TEST_CASE("router_balance: biases bring a skewed router to balance") {
  const std::int64_t rows = 512, experts = 8, k = 2;
  auto logits = random<double>(rows * experts, 5);
  for (std::int64_t i = 0; i < logits.size(); ++i) logits[i] += 0.3 * double(i % experts);
  std::vector<double> bias(static_cast<std::size_t>(experts));
  std::vector<std::int64_t> loads(static_cast<std::size_t>(experts));
  const auto measure = [&] {
    std::fill(loads.begin(), loads.end(), 0);
    const auto e = chosen(logits, rows, experts, k, bias);
    count_loads({e.data(), rows, k}, {loads.data(), experts});
    return balance_of({loads.data(), experts}).max_over_mean;
  };
  CHECK(measure() > 2);
  // Scores differ by at most about 1: 1000 steps of 1e-3 each, in both directions.
  for (int step = 0; step < 1000; ++step) {
    measure();
    update_router_bias<double>({bias.data(), experts}, {loads.data(), experts});
  }
  CHECK(measure() < 1.1);
}

TEST_CASE("router_balance: the loss of perfect balance, and of none") {
  const std::int64_t experts = 4;
  const buffer<double> flat(8 * experts);  // equal logits
  std::vector<std::int32_t> even, one;
  for (std::int32_t t = 0; t < 8; ++t) {
    even.push_back(t % 4), even.push_back((t + 1) % 4);
    one.push_back(0), one.push_back(1);
  }
  buffer<double> d(8 * experts);
  CHECK(loss(exec::reference{}, flat, experts, even, 2, {0, 8}, 1e-4, d.as(8, experts)) ==
        Catch::Approx(1e-4));
  for (double g : d) CHECK(std::abs(g) < 1e-20);

  auto peaked = random<double>(8 * experts);
  for (std::int64_t t = 0; t < 8; ++t) {
    peaked[t * experts] = peaked[t * experts + 1] = 1e6;  // half of the score each
    peaked[t * experts + 2] = peaked[t * experts + 3] = -60;
  }
  // f = (2, 2, 0, 0) and P = (1/2, 1/2, 0, 0).
  CHECK(loss(exec::reference{}, peaked, experts, one, 2, {0, 8}, 1) == Catch::Approx(2));
}

TEST_CASE("router_balance: the gradient is that of the loss") {
  const std::int64_t experts = 5, k = 2, rows = 11;
  auto logits = random<double>(rows * experts, 3, 2);
  logits[7] = -40;  // where scores have underflown to about 2e-9
  const auto e = chosen(logits, rows, experts, k);
  const std::vector<std::int64_t> offsets{0, 4, 4, 10};  // an empty sequence; a row that belongs to none
  buffer<double> d(rows * experts);
  for (double& v : d) v = 1;  // it is added to
  loss(exec::reference{}, logits, experts, e, k, offsets, 0.7, d.as(rows, experts));
  for (std::int64_t i = 0; i < logits.size(); ++i) {
    const double h = 1e-5, at = logits[i];
    logits[i] = at + h;
    const double above = loss(exec::reference{}, logits, experts, e, k, offsets, 0.7);
    logits[i] = at - h;
    const double below = loss(exec::reference{}, logits, experts, e, k, offsets, 0.7);
    logits[i] = at;
    CHECK(std::abs(d[i] - 1 - (above - below) / (2 * h)) < 1e-9);  // h^2, and rounding over h
    if (i >= 10 * experts) CHECK(d[i] == 1);
  }
}

TEST_CASE("router_balance: cpu equals reference, for any number of threads") {
  const std::int64_t experts = 16, k = 3, rows = 700;
  const auto logits = random<double>(rows * experts, 8, 4);
  const auto e = chosen(logits, rows, experts, k);
  const std::vector<std::int64_t> offsets{0, 1, 300, 301, 700};
  buffer<double> want(rows * experts), one(rows * experts);
  const double value = loss(exec::reference{}, logits, experts, e, k, offsets, 1, want.as(rows, experts));
  const double first = loss(exec::cpu(1), logits, experts, e, k, offsets, 1, one.as(rows, experts));
  CHECK(first == Catch::Approx(value).epsilon(1e-13));
  CHECK(relative_error(one, want) < 1e-14);
  for (int threads : {2, 3, 5}) {
    buffer<double> many(rows * experts);
    CHECK(loss(exec::cpu(threads), logits, experts, e, k, offsets, 1, many.as(rows, experts)) == first);
    CHECK(same(many, one));
  }
  // Scores of 0 have no share and no gradient, and leave no NaN.
  buffer<double> dead(experts), d(experts);
  for (double& v : dead) v = -5000;
  const std::vector<std::int32_t> any{0, 1, 2};
  for (bool reference : {true, false}) {
    const double nothing = reference
                               ? loss(exec::reference{}, dead, experts, any, k, {0, 1}, 1, d.as(1, experts))
                               : loss(exec::cpu(1), dead, experts, any, k, {0, 1}, 1, d.as(1, experts));
    CHECK(nothing == 0);
    for (double g : d) CHECK(g == 0);
  }
}
