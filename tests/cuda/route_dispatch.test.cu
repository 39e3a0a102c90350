// SPDX-License-Identifier: Apache-2.0
// The same bits as the two ops, whether one launch does it or two.
#include "support/device.cuh"
#include <dsv4/ops/cuda/route_dispatch.cuh>

#include <limits>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
template <class T>
struct results {
  std::int64_t rows, experts, k, width;
  twin<std::int32_t> chosen = poison<std::int32_t>(rows * k);
  twin<T> weights = poison<T>(rows * k), sorted = poison<T>(rows * k * width),
          weight_sorted = poison<T>(rows * k);
  twin<std::int64_t> offsets = poison<std::int64_t>(experts + 1), order = poison<std::int64_t>(rows * k);
  typename route<T, D>::outputs route() { return {chosen.d(rows, k), weights.d(rows, k)}; }
  typename expert_dispatch<T, D>::outputs dispatch() {
    return {offsets.d(experts + 1), order.d(rows * k), sorted.d(rows * k, width), weight_sorted.d(rows * k)};
  }
};

template <class T>
void check(const typename route<T, D>::inputs& in, twin<T>& x, std::int64_t k, std::int64_t width) {
  const std::int64_t rows = in.logits.extent[0], experts = in.logits.extent[1];
  results<T> both{rows, experts, k, width}, single{rows, experts, k, width};
  route<T, D>::forward(gpu(), in, single.route());
  expert_dispatch<T, D>::forward(
      gpu(), {x.d(rows, width), single.chosen.d(rows, k), single.weights.d(rows, k)}, single.dispatch());
  route_dispatch<T, D>::forward(gpu(), {in, x.d(rows, width)}, {both.route(), both.dispatch()});
  CHECK(same_bytes(both.chosen.fetch(), single.chosen.fetch()));
  CHECK(same_bytes(both.weights.fetch(), single.weights.fetch()));
  CHECK(same_bytes(both.offsets.fetch(), single.offsets.fetch()));
  CHECK(same_bytes(both.order.fetch(), single.order.fetch()));
  CHECK(same_bytes(both.sorted.fetch(), single.sorted.fetch()));
  CHECK(same_bytes(both.weight_sorted.fetch(), single.weight_sorted.fetch()));
}
}  // namespace

TEMPLATE_TEST_CASE("route_dispatch: cuda, the bits of the two ops", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t rows : {1, 3})
    for (const std::int64_t experts : {1, 8, 256, 384})
      for (const std::int64_t width : {33, 64}) {
        const std::int64_t k = experts == 1 ? 1 : 6;
        INFO(rows << " rows, " << experts << " experts, width " << width);
        // Few different values: ties at every place.
        auto logits = integers<T>(rows * experts, -40, 40), bias = integers<T>(experts, -1, 1);
        auto x = random<T>(rows * width, 1);
        check<T>({logits.d(rows, experts), bias.d(experts), {}, {}, 2.5}, x, k, width);
        auto table = integers<std::int32_t>(19 * k, 0, experts - 1),
             tokens = integers<std::int32_t>(rows, 0, 18);
        check<T>({logits.d(rows, experts), {}, table.d(19, k), tokens.d(rows), 2.5}, x, k, width);
        // Few scores, or none.
        for (std::int64_t e = 0; e < rows * experts; ++e)
          if (e % 5 != 3) logits.host[e] = T(std::numeric_limits<float>::quiet_NaN());
        twin<T> sparse(std::move(logits.host));
        check<T>({sparse.d(rows, experts), bias.d(experts), {}, {}, 2.5}, x, k, width);
      }
}

TEST_CASE(
    "route_dispatch: on the GPU a token without a row, or an entry that is no expert, gives weights of NaN") {
  auto logits = random<float>(8, 1), x = random<float>(64, 2);
  for (const std::int32_t token : {-1, 0, 1, 2}) {
    buffer<std::int32_t> entries(4), id(1);
    entries[0] = 3, entries[1] = 8, entries[2] = 5, entries[3] = 5, id[0] = token;
    twin<std::int32_t> table(std::move(entries)), tokens(std::move(id));
    check<float>({logits.d(1, 8), {}, table.d(2, 2), tokens.d(1), 1}, x, 2, 64);
  }
}
