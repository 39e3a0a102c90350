// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/train/learning_rate.hpp>

#include <cmath>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("learning_rate: warm-up, constant, half a cosine") {
  const learning_rate_schedule s{
      .peak = 2.7e-4, .last = 2.7e-5, .steps = 1000, .warmup_steps = 20, .decay_begin = 800};
  s.check();
  CHECK(learning_rate(s, 0) == Catch::Approx(2.7e-4 / 20));
  CHECK(learning_rate(s, 9) == Catch::Approx(1.35e-4));
  CHECK(learning_rate(s, 18) < 2.7e-4);
  for (std::int64_t step : {19, 20, 500, 800}) CHECK(learning_rate(s, step) == 2.7e-4);
  CHECK(learning_rate(s, 801) < 2.7e-4);
  CHECK(learning_rate(s, 850) == Catch::Approx(2.7e-5 + 2.43e-4 * (0.5 + 0.25 * std::sqrt(2.0))));
  CHECK(learning_rate(s, 900) == Catch::Approx((2.7e-4 + 2.7e-5) / 2));  // half of the way down
  for (std::int64_t step : {1000, 1001, 100000}) CHECK(learning_rate(s, step) == 2.7e-5);
  for (std::int64_t step = 0; step < 1000; ++step)
    CHECK((step < 800 ? learning_rate(s, step) <= learning_rate(s, step + 1)
                      : learning_rate(s, step) > learning_rate(s, step + 1)));
}

TEST_CASE("learning_rate: schedules without some of their parts") {
  const learning_rate_schedule constant{1, 1, 10, 0, 10};
  for (std::int64_t step : {0, 5, 10, 11}) CHECK(learning_rate(constant, step) == 1);
  const learning_rate_schedule cosine{1, 0, 10, 0, 0};
  CHECK(learning_rate(cosine, 0) == 1);
  CHECK(learning_rate(cosine, 5) == Catch::Approx(0.5));
  CHECK(learning_rate(cosine, 10) == 0);
  CHECK_THROWS_WITH((learning_rate_schedule{1, 0, 10, 5, 4}.check()),
                    contains("decay_begin: expected at least warmup_steps = 5, found 4"));
  CHECK_THROWS_WITH((learning_rate_schedule{1, 0, 3, 1, 4}.check()), contains("steps"));
}

TEST_CASE("learning_rate: the weight of the MTP loss falls when the decay begins") {
  const learning_rate_schedule s{1, 0.1, 100, 10, 80};
  CHECK(mtp_loss_weight(s, 0) == 0.3);
  CHECK(mtp_loss_weight(s, 80) == 0.3);
  CHECK(mtp_loss_weight(s, 81) == 0.1);
  CHECK(mtp_loss_weight(s, 200) == 0.1);
}
