// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/route.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: scores, their sum and the quotient are in double; one rounding.
TEMPLATE_TEST_CASE("route: cuda equals reference, by score and by table", "", float, double) {
  using T = TestType;
  for (const std::int64_t rows : {0, 1, 3, 201})
    for (const std::int64_t experts : {1, 8, 256, 384}) {
      const std::int64_t k = experts == 1 ? 1 : 6;
      INFO(rows << " rows, " << experts << " experts");
      // Few different values: ties at every place.
      auto logits = integers<T>(rows * experts, -40, 40), bias = integers<T>(experts, -1, 1);
      auto chosen = poison<std::int32_t>(rows * k);
      auto weights = poison<T>(rows * k);
      route<T>::forward(exec::reference{}, {logits.h(rows, experts), bias.h(experts), {}, {}, 2.5},
                        {chosen.h(rows, k), weights.h(rows, k)});
      check_close(weights, tolerance<T>(2), [&] {
        route<T, D>::forward(gpu(), {logits.d(rows, experts), bias.d(experts), {}, {}, 2.5},
                             {chosen.d(rows, k), weights.d(rows, k)});
      });
      CHECK(same_bytes(chosen.fetch(), chosen.host));

      auto table = integers<std::int32_t>(19 * k, 0, experts - 1),
           tokens = integers<std::int32_t>(rows, 0, 18);
      route<T>::forward(exec::reference{}, {logits.h(rows, experts), {}, table.h(19, k), tokens.h(rows), 2.5},
                        {chosen.h(rows, k), weights.h(rows, k)});
      check_close(weights, tolerance<T>(2), [&] {
        route<T, D>::forward(gpu(), {logits.d(rows, experts), {}, table.d(19, k), tokens.d(rows), 2.5},
                             {chosen.d(rows, k), weights.d(rows, k)});
      });
      CHECK(same_bytes(chosen.fetch(), chosen.host));
    }
}

TEST_CASE("route: on the GPU a token without a row, or an entry that is no expert, gives weights of NaN") {
  auto logits = random<float>(3 * 8);
  buffer<std::int32_t> rows(2 * 2), ids(3);
  rows[0] = 1, rows[1] = 2, rows[2] = 3, rows[3] = 8;
  ids[0] = 0, ids[1] = 1, ids[2] = 2;
  twin<std::int32_t> table(std::move(rows)), tokens(std::move(ids));
  auto chosen = poison<std::int32_t>(6);
  auto weights = poison<float>(6);
  route<float, D>::forward(gpu(), {logits.d(3, 8), {}, table.d(2, 2), tokens.d(3), 1},
                           {chosen.d(3, 2), weights.d(3, 2)});
  const auto e = chosen.fetch();
  const auto w = weights.fetch();
  CHECK((e[0] == 1 && e[1] == 2 && std::abs(w[0] + w[1] - 1) < 1e-6));
  for (int i = 2; i < 6; ++i) CHECK((std::isnan(w[i]) && e[i] >= 0 && e[i] < 8));
}

TEMPLATE_TEST_CASE("route: gradients, cuda equals reference, an expert named twice", "", float, double) {
  using T = TestType;
  for (const std::int64_t rows : {1, 3, 201}) {
    const std::int64_t experts = 40, k = 6;
    auto logits = random<T>(rows * experts, 1, 50), dweights = random<T>(rows * k, 2);
    auto chosen = integers<std::int32_t>(rows * k, 0, experts - 1);
    auto dlogits = poison<T>(rows * experts);
    route<T>::backward(exec::reference{}, host_work(), {logits.h(rows, experts), {}, {}, {}, 2.5},
                       {chosen.h(rows, k)}, {dweights.h(rows, k)}, {dlogits.h(rows, experts)});
    check_close(dlogits, tolerance<T>(4), [&] {
      route<T, D>::backward(gpu(), work(), {logits.d(rows, experts), {}, {}, {}, 2.5}, {chosen.d(rows, k)},
                            {dweights.d(rows, k)}, {dlogits.d(rows, experts)});
    });
  }
}
