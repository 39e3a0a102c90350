// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/cross_entropy.cuh>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
// Terms: logits are sums of 40 products; the exponential, and a sum over the vocabulary in a tree; gradients
// add up the rows.
template <class T, class W>
void check() {
  for (const std::int64_t rows : {1, 3, 90})
    for (const std::int64_t vocabulary : {1, 50, 700}) {
      const std::int64_t width = 40;
      INFO(rows << " rows, " << vocabulary << " words");
      auto hidden = random<T>(rows * width, 1), dloss = random<T>(rows, 3);
      auto head = random<W>(vocabulary * width, 2);
      auto targets = integers<std::int32_t>(rows, -1, vocabulary - 1);  // -1 is masked
      auto loss = poison<T>(rows), lse = poison<T>(rows);
      cross_entropy<T, space::host, W>::forward(
          exec::reference{}, host_work(), {hidden.h(rows, width), head.h(vocabulary, width), targets.h(rows)},
          {loss.h(rows)}, {lse.h(rows)});
      const auto forward = [&] {
        cross_entropy<T, D, W>::forward(gpu(), work(),
                                        {hidden.d(rows, width), head.d(vocabulary, width), targets.d(rows)},
                                        {loss.d(rows)}, {lse.d(rows)});
      };
      const double limit = tolerance<T>(100 + double(rows));
      check_close(loss, limit, forward);
      check_close(lse, limit, forward);
      auto dhidden = poison<T>(rows * width), dhead = random<T>(vocabulary * width, 4);
      cross_entropy<T, space::host, W>::backward(
          exec::reference{}, host_work(), {hidden.h(rows, width), head.h(vocabulary, width), targets.h(rows)},
          {lse.h(rows)}, {dloss.h(rows)}, {dhidden.h(rows, width), dhead.h(vocabulary, width)});
      const auto backward = [&] {
        cross_entropy<T, D, W>::backward(
            gpu(), work(), {hidden.d(rows, width), head.d(vocabulary, width), targets.d(rows)}, {lse.d(rows)},
            {dloss.d(rows)}, {dhidden.d(rows, width), dhead.d(vocabulary, width)});
      };
      check_close(dhidden, limit, backward);
      check_close(dhead, limit, backward);
    }
}
}  // namespace

TEST_CASE("cross_entropy: cuda equals reference, forward and gradients") {
  check<float, float>();
  check<double, double>();
  check<float, bf16>();
}

TEST_CASE("cross_entropy: on the GPU a target beyond the vocabulary gives a loss of NaN") {
  auto hidden = random<float>(2 * 8), head = random<float>(5 * 8), loss = poison<float>(2);
  buffer<std::int32_t> ids(2);
  ids[0] = 4, ids[1] = 5;
  twin<std::int32_t> targets(std::move(ids));
  cross_entropy<float, D>::forward(gpu(), work(), {hidden.d(2, 8), head.d(5, 8), targets.d(2)}, {loss.d(2)});
  const auto got = loss.fetch();
  CHECK((std::isfinite(got[0]) && std::isnan(got[1])));
}
