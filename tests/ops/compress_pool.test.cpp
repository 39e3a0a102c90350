// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("compressor: softmax over tokens, separately for every channel") {
  // Two tokens, two channels; gates log 3 apart in channel 0, equal in channel 1.
  double kv[] = {1, 10, 5, 20}, gate[] = {std::log(3.0), 0, 0, 0}, bias[] = {0, 0, 0, 0}, y[2];
  compress_pool<double>::forward(exec::reference{}, {{kv, 2, 2}, {gate, 2, 2}, {bias, 2, 2}, 0, 0, false},
                                 {{y, 1, 2}});
  CHECK(y[0] == Catch::Approx(0.75 * 1 + 0.25 * 5));
  CHECK(y[1] == Catch::Approx(15));
}

TEST_CASE(
    "ape at the wrong place: the bias is that of the position in the group, and of the row's own half") {
  // m = 2, D = 1, overlap: entry 1 pools tokens 0, 1 with channel 0 and tokens 2, 3 with channel 1.
  double kv[] = {1, -1, 2, -2, -3, 3, -4, 4}, gate[8] = {},
         bias[] = {0, std::log(2.0), std::log(3.0), std::log(4.0)};
  double y[2];
  compress_pool<double>::forward(exec::reference{}, {{kv, 4, 2}, {gate, 4, 2}, {bias, 2, 2}, 0, 0, true},
                                 {{y, 2, 1}});
  CHECK(y[0] == Catch::Approx((2 * -1 + 4 * -2) / 6.0));
  CHECK(y[1] == Catch::Approx((1 * 1 + 3 * 2 + 2 * 3 + 4 * 4) / 10.0));
  double zero[8] = {};
  compress_pool<double>::forward(exec::reference{}, {{zero, 4, 2}, {gate, 4, 2}, {bias, 2, 2}, 0, 0, true},
                                 {{y, 2, 1}});
  CHECK(y[0] == 0);
  CHECK(y[1] == 0);
}

TEST_CASE("first block: the missing previous group has weight 0, not logit 0") {
  // Very negative gates: a logit of 0 for absent tokens would take all of the weight.
  double kv[] = {7, 7, 7, 7}, gate[] = {-50, -50, -50, -50}, bias[4] = {}, y[1];
  compress_pool<double>::forward(exec::reference{}, {{kv, 2, 2}, {gate, 2, 2}, {bias, 2, 2}, 0, 0, true},
                                 {{y, 1, 1}});
  CHECK(y[0] == Catch::Approx(7));
  double y32[1];
  compress_pool<double>::forward(exec::cpu(1), {{kv, 2, 2}, {gate, 2, 2}, {bias, 2, 2}, 0, 0, true},
                                 {{y32, 1, 1}});
  CHECK(y32[0] == Catch::Approx(7));
}

TEMPLATE_TEST_CASE("compress_pool: cpu equals reference, from any first entry", "", float, double) {
  for (bool overlap : {false, true})
    for (std::int64_t m : {2, 4, 16})
      for (std::int64_t dim : {1, 5, 32}) {
        const std::int64_t entries = 5, rows = entries * m, width = overlap ? 2 * dim : dim;
        const auto kv = random<TestType>(rows * width, 1), gate = random<TestType>(rows * width, 2, 8);
        const auto bias = random<TestType>(m * width, 3);
        auto a = poison<TestType>(entries * dim), b = poison<TestType>(entries * dim),
             c = poison<TestType>(entries * dim);
        const typename compress_pool<TestType>::inputs all{
            kv.as(rows, width), gate.as(rows, width), bias.as(m, width), 0, 0, overlap};
        compress_pool<TestType>::forward(exec::reference{}, all, {a.as(entries, dim)});
        compress_pool<TestType>::forward(exec::cpu(2), all, {b.as(entries, dim)});
        CHECK(relative_error(b, a) <=
              rounding<TestType>(2.0 * double(m) + 16));  // sums of 2m terms; the exponent's own error
        for (std::int64_t i = 0; i < entries; ++i) {
          auto one = all;
          one.first_entry = i;
          compress_pool<TestType>::forward(exec::cpu(1), one, {c.as(entries, dim).rows(i, 1)});
        }
        CHECK(same(b, c));
      }
}

TEST_CASE("compress_pool: rows that the entries need and the call lacks are refused") {
  float x[8] = {};
  CHECK_THROWS_AS(compress_pool<float>::forward(exec::reference{},
                                                {{x, 3, 1}, {x, 3, 1}, {x, 2, 1}, 0, 0, false}, {{x, 2, 1}}),
                  contract_error);
  CHECK_THROWS_WITH(compress_pool<float>::forward(exec::reference{},
                                                  {{x, 2, 2}, {x, 2, 2}, {x, 2, 2}, 2, 1, true}, {{x, 1, 1}}),
                    contains("first_position") && contains("at most 0"));
}
