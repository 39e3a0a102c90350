// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/expert_dispatch.cuh>

using namespace dsv4;
using namespace dsv4::testing;

TEMPLATE_TEST_CASE("expert_dispatch and expert_combine: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t rows : {0, 1, 3, 200})
    for (const std::int64_t experts : {1, 8, 384})
      for (const std::int64_t width : {1, 33, 64}) {
        const std::int64_t k = experts == 1 ? 1 : 6, pairs = rows * k;
        INFO(rows << " rows, " << experts << " experts, width " << width);
        auto x = random<T>(rows * width, 1), weights = random<T>(pairs, 2),
             shared = random<T>(rows * width, 3);
        auto chosen = integers<std::int32_t>(pairs, 0, experts - 1);  // one token may have an expert twice
        auto offsets = poison<std::int64_t>(experts + 1), order = poison<std::int64_t>(pairs),
             inverse = poison<std::int64_t>(pairs);
        auto sorted = poison<T>(pairs * width), weight_sorted = poison<T>(pairs),
             out = poison<T>(rows * width);
        expert_dispatch<T>::forward(
            exec::reference{}, {x.h(rows, width), chosen.h(rows, k), weights.h(rows, k)},
            {offsets.h(experts + 1), order.h(pairs), sorted.h(pairs, width), weight_sorted.h(pairs)});
        const auto run = [&] {
          expert_dispatch<T, D>::forward(
              gpu(), {x.d(rows, width), chosen.d(rows, k), weights.d(rows, k)},
              {offsets.d(experts + 1), order.d(pairs), sorted.d(pairs, width), weight_sorted.d(pairs)});
        };
        check_close(sorted, 0, run);
        CHECK(same_bytes(offsets.fetch(), offsets.host));
        CHECK(same_bytes(order.fetch(), order.host));
        CHECK(same_bytes(weight_sorted.fetch(), weight_sorted.host));
        if (rows == 0) continue;
        expert_combine<T>::forward(exec::reference{},
                                   {sorted.h(pairs, width), order.h(pairs), shared.h(rows, width)},
                                   {out.h(rows, width), inverse.h(pairs)});
        check_close(out, tolerance<T>(7), [&] {  // seven terms
          expert_combine<T, D>::forward(gpu(),
                                        {sorted.d(pairs, width), order.d(pairs), shared.d(rows, width)},
                                        {out.d(rows, width), inverse.d(pairs)});
        });
        check_close(shared, INFINITY, [&] {  // out may be shared
          expert_combine<T, D>::forward(gpu(),
                                        {sorted.d(pairs, width), order.d(pairs), shared.d(rows, width)},
                                        {shared.d(rows, width), inverse.d(pairs)});
        });
        CHECK(same_bytes(shared.fetch(), out.fetch()));
      }
}

TEMPLATE_TEST_CASE("expert_dispatch and expert_combine: gradients, cuda equals reference", "", float, double,
                   bf16) {
  using T = TestType;
  for (const std::int64_t rows : {1, 3, 200})
    for (const std::int64_t width : {33, 64}) {
      const std::int64_t k = 6, experts = 8, pairs = rows * k;
      auto x = random<T>(rows * width, 1), weights = random<T>(pairs, 2);
      auto chosen = integers<std::int32_t>(pairs, 0, experts - 1);
      auto offsets = poison<std::int64_t>(experts + 1), order = poison<std::int64_t>(pairs);
      auto sorted = poison<T>(pairs * width), weight_sorted = poison<T>(pairs);
      expert_dispatch<T, D>::forward(
          gpu(), {x.d(rows, width), chosen.d(rows, k), weights.d(rows, k)},
          {offsets.d(experts + 1), order.d(pairs), sorted.d(pairs, width), weight_sorted.d(pairs)});
      order.host = order.fetch();
      auto dsorted = random<T>(pairs * width, 3), dweight_sorted = random<T>(pairs, 4);
      auto dx = poison<T>(rows * width), dweights = poison<T>(pairs);
      expert_dispatch<T>::backward(exec::reference{}, host_work(),
                                   {x.h(rows, width), chosen.h(rows, k), weights.h(rows, k)},
                                   {order.h(pairs)}, {dsorted.h(pairs, width), dweight_sorted.h(pairs)},
                                   {dx.h(rows, width), dweights.h(rows, k)});
      const auto run = [&] {
        expert_dispatch<T, D>::backward(
            gpu(), work(), {x.d(rows, width), chosen.d(rows, k), weights.d(rows, k)}, {order.d(pairs)},
            {dsorted.d(pairs, width), dweight_sorted.d(pairs)}, {dx.d(rows, width), dweights.d(rows, k)});
      };
      check_close(dx, tolerance<T>(6), run);
      check_close(dweights, 0, run);
      auto dy = poison<T>(pairs * width);
      expert_combine<T>::backward(exec::reference{}, host_work(), {{}, order.h(pairs), {}},
                                  {x.h(rows, width)}, {dy.h(pairs, width)});
      check_close(dy, 0, [&] {
        expert_combine<T, D>::backward(gpu(), work(), {{}, order.d(pairs), {}}, {x.d(rows, width)},
                                       {dy.d(pairs, width)});
      });
    }
}
