// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/ops/route_dispatch.hpp>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("route_dispatch is the two ops") {
  const std::int64_t rows = 5, experts = 7, k = 3, width = 4, pairs = rows * k;
  const auto logits = random<double>(rows * experts, 1), bias = random<double>(experts, 2),
             x = random<double>(rows * width, 3);
  struct results {
    buffer<std::int32_t> chosen{rows * k};
    buffer<double> weights{rows * k}, sorted{pairs * width}, weight_sorted{pairs};
    buffer<std::int64_t> offsets{experts + 1}, order{pairs};
    auto route() { return dsv4::route<double>::outputs{chosen.as(rows, k), weights.as(rows, k)}; }
    auto dispatch() {
      return expert_dispatch<double>::outputs{offsets.as(experts + 1), order.as(pairs),
                                              sorted.as(pairs, width), weight_sorted.as(pairs)};
    }
  } both, single;
  const route<double>::inputs in{logits.as(rows, experts), bias.as(experts), {}, {}, 2.5};
  const exec::cpu p(2);
  route_dispatch<double>::forward(p, {in, x.as(rows, width)}, {both.route(), both.dispatch()});
  route<double>::forward(p, in, single.route());
  expert_dispatch<double>::forward(
      p, {x.as(rows, width), single.chosen.as(rows, k), single.weights.as(rows, k)}, single.dispatch());
  CHECK(same(both.chosen, single.chosen));
  CHECK(same(both.weights, single.weights));
  CHECK(same(both.offsets, single.offsets));
  CHECK(same(both.order, single.order));
  CHECK(same(both.sorted, single.sorted));
  CHECK(same(both.weight_sorted, single.weight_sorted));
  CHECK_THROWS_AS(
      route_dispatch<double>::forward(p, {in, x.as(rows - 1, width)}, {both.route(), both.dispatch()}),
      contract_error);
}
