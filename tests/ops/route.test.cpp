// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("sqrt-softplus under- and overflow: the whole range against long double") {
  for (double x = -104; x <= 200; x += 0.37) {
    const long double want = std::sqrt(x > 0 ? (long double)(x) + std::log1p(std::exp((long double)(-x)))
                                             : std::log1p(std::exp((long double)(x))));
    CHECK(route<double>::score(x) == Catch::Approx(double(want)).epsilon(1e-14));
  }
  float logits[] = {-5000, -5000, -5000}, bias[] = {0, 0, 0}, weights[2];
  std::int32_t experts[2];
  route<float>::forward(exec::cpu(1), {{logits, 1, 3}, {bias, 3}, {}, {}, 1.5},
                        {{experts, 1, 2}, {weights, 1, 2}});
  CHECK(weights[0] == 0);
  CHECK(weights[1] == 0);
}

TEST_CASE("bias leaks into weights: selection is biased, weights are not; the factor multiplies their sum") {
  double logits[] = {1, 2, 3, 0}, bias[] = {5, 0, -5, 5}, weights[2];
  std::int32_t experts[2];
  route<double>::forward(exec::reference{}, {{logits, 1, 4}, {bias, 4}, {}, {}, 2.5},
                         {{experts, 1, 2}, {weights, 1, 2}});
  CHECK(experts[0] == 0);
  CHECK(experts[1] == 3);
  const double a = route<double>::score(1), b = route<double>::score(0);
  CHECK(weights[0] == Catch::Approx(2.5 * a / (a + b)));
  CHECK(weights[0] + weights[1] == Catch::Approx(2.5));
}

TEST_CASE("ties in the router go to the lower index") {
  float logits[] = {1, 2, 2, 2, 1}, bias[5] = {}, weights[2];
  std::int32_t experts[2];
  route<float>::forward(exec::reference{}, {{logits, 1, 5}, {bias, 5}, {}, {}, 1},
                        {{experts, 1, 2}, {weights, 1, 2}});
  CHECK(experts[0] == 1);
  CHECK(experts[1] == 2);
}

TEST_CASE("hash layers: the table chooses, the gate weighs") {
  double logits[] = {0, 1, 2, 3, 4, 5}, weights[4], permuted[4];
  std::int32_t table[] = {0, 0, 0, 0, 2, 1}, swapped[] = {0, 0, 0, 0, 1, 2}, tokens[] = {2, 2}, experts[4];
  route<double>::forward(exec::reference{}, {{logits, 2, 3}, {}, {table, 3, 2}, {tokens, 2}, 1},
                         {{experts, 2, 2}, {weights, 2, 2}});
  CHECK(experts[0] == 2);  // the last token of the vocabulary
  CHECK(experts[1] == 1);
  const double a = route<double>::score(2), b = route<double>::score(1);
  CHECK(weights[0] == Catch::Approx(a / (a + b)));
  route<double>::forward(exec::reference{}, {{logits, 2, 3}, {}, {swapped, 3, 2}, {tokens, 2}, 1},
                         {{experts, 2, 2}, {permuted, 2, 2}});
  CHECK(permuted[0] == weights[1]);
  CHECK(permuted[1] == weights[0]);
  tokens[1] = 3;
  CHECK_THROWS_WITH(route<double>::forward(exec::cpu(1), {{logits, 2, 3}, {}, {table, 3, 2}, {tokens, 2}, 1},
                                           {{experts, 2, 2}, {weights, 2, 2}}),
                    contains("tokens[1]") && contains("found 3"));
  tokens[1] = 2, table[5] = 3;
  CHECK_THROWS_WITH(route<double>::forward(exec::cpu(1), {{logits, 2, 3}, {}, {table, 3, 2}, {tokens, 2}, 1},
                                           {{experts, 2, 2}, {weights, 2, 2}}),
                    contains("table[2]") && contains("found 3"));
}
