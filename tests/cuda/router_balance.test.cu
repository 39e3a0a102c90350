// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/train/cuda/router_balance.cuh>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("expert_loads and router_bias: cuda equals reference, exactly") {
  for (const std::int64_t experts : {1, 8, 257})
    for (const std::int64_t rows : {0, 1, 1001}) {
      INFO(rows << " rows, " << experts << " experts");
      auto chosen = integers<std::int32_t>(rows * 3, -1, std::int64_t(experts) - 1);
      auto loads = integers<std::int64_t>(experts, 0, 5);  // added to
      expert_loads<>::forward(exec::reference{}, {chosen.h(rows, 3)}, {loads.h(experts)});
      const auto got =
          run_twice(loads, [&] { expert_loads<D>::forward(gpu(), {chosen.d(rows, 3)}, {loads.d(experts)}); });
      CHECK(same_bytes(got, loads.host));
      auto bias = random<float>(experts);
      router_bias<float>::forward(exec::reference{}, {loads.h(experts), 1e-3}, {bias.h(experts)});
      CHECK(same_bytes(
          run_twice(bias,
                    [&] {
                      router_bias<float, D>::forward(gpu(), {loads.d(experts), 1e-3}, {bias.d(experts)});
                    }),
          bias.host));
    }
}

// Sums in double, each in another order than the host's: of up to 257 scores, of up to 700 shares. Scores
// come from exp and log1p, which are good to 2 ulp on either side.
TEMPLATE_TEST_CASE("sequence_balance: cuda equals reference", "", float, double) {
  using T = TestType;
  for (const std::int64_t experts : {1, 16, 257}) {
    const std::int64_t rows = 703, k = 3;
    auto logits = random<T>(rows * experts, 8, 4);
    logits.host[7 % (rows * experts)] = T(-40);  // where scores have underflown to about 2e-9
    twin<T> x(std::move(logits.host));
    auto chosen = integers<std::int32_t>(rows * k, -1, std::int64_t(experts) - 1);
    buffer<std::int64_t> bounds(6);
    const std::int64_t at[] = {0, 1, 300, 300, 301, 700};  // an empty sequence, and rows that belong to none
    std::copy(at, at + 6, bounds.begin());
    twin<std::int64_t> offsets(std::move(bounds));
    auto dlogits = random<T>(rows * experts, 5);  // added to
    auto loss = poison<double>(1);
    sequence_balance<T>::forward(exec::reference{}, host_work(),
                                 {x.h(rows, experts), chosen.h(rows, k), offsets.h(6), 0.7},
                                 {loss.h(1), dlogits.h(rows, experts)});
    const auto run = [&](matrix_view<T, D> to) {
      sequence_balance<T, D>::forward(
          gpu(), work(), {x.d(rows, experts), chosen.d(rows, k), offsets.d(6), 0.7}, {loss.d(1), to});
    };
    check_close(dlogits, tolerance<T>(1) + 300 * 0x1p-52, [&] { run(dlogits.d(rows, experts)); });
    check_close(loss, 1000 * 0x1p-52, [&] { run({}); });
  }
}

TEST_CASE("sequence_balance: scores of 0 have no share and no gradient on the GPU") {
  buffer<double> dead(5);
  for (double& v : dead) v = -5000;
  twin<double> x(std::move(dead)), d(buffer<double>(5));
  auto chosen = integers<std::int32_t>(3, 0, 2);
  buffer<std::int64_t> bounds(2);
  bounds[1] = 1;
  twin<std::int64_t> offsets(std::move(bounds));
  auto loss = poison<double>(1);
  sequence_balance<double, D>::forward(gpu(), work(), {x.d(1, 5), chosen.d(1, 3), offsets.d(2), 1},
                                       {loss.d(1), d.d(1, 5)});
  CHECK(loss.fetch()[0] == 0);
  for (double g : d.fetch()) CHECK(g == 0);
}
