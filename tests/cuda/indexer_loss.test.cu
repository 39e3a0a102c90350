// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/indexer_loss.cuh>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
// Terms: two distributions, each through exponentials of sums of up to 64 products and sums over the entries;
// key gradients add up rows and heads.
template <class T>
void check(std::int64_t rows, std::int64_t first, std::int64_t ratio, std::int64_t k, bool sink) {
  INFO(rows << " rows at " << first << ", k " << k << (sink ? ", sink" : ""));
  const std::int64_t heads = 5, width = 36, index_heads = 9, index_width = 40,
                     entries = (first + rows) / ratio + 1;
  auto q = random<T>(rows * heads * width, 1, 2), compressed = random<T>(entries * width, 2),
       sinks = random<T>(heads, 3), iq = random<T>(rows * index_heads * index_width, 4),
       ik = random<T>(entries * index_width, 5), iw = random<T>(rows * index_heads, 6),
       dloss = random<T>(rows, 7);
  buffer<std::int32_t> chosen(rows * k);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t visible = (first + t + 1) / ratio,
                         s = j * std::max<std::int64_t>(1, visible / k) + t % 2;
      chosen[t * k + j] = s < visible ? std::int32_t(s) : -1;
    }
  twin<std::int32_t> selected(std::move(chosen));
  auto loss = poison<T>(rows), diq = poison<T>(rows * index_heads * index_width),
       dik = poison<T>(entries * index_width), diw = poison<T>(rows * index_heads);
  const typename indexer_loss<T>::inputs h{q.h(rows, heads, width),
                                           compressed.h(entries, width),
                                           sinks.h(heads),
                                           iq.h(rows, index_heads, index_width),
                                           ik.h(entries, index_width),
                                           iw.h(rows, index_heads),
                                           k ? selected.h(rows, k) : matrix_view<std::int32_t>{},
                                           first,
                                           ratio,
                                           0.2,
                                           0.05,
                                           sink};
  const typename indexer_loss<T, D>::inputs d{q.d(rows, heads, width),
                                              compressed.d(entries, width),
                                              sinks.d(heads),
                                              iq.d(rows, index_heads, index_width),
                                              ik.d(entries, index_width),
                                              iw.d(rows, index_heads),
                                              k ? selected.d(rows, k) : matrix_view<std::int32_t, D>{},
                                              first,
                                              ratio,
                                              0.2,
                                              0.05,
                                              sink};
  const double limit = tolerance<T>(300 + double(rows * index_heads));
  indexer_loss<T>::forward(exec::reference{}, h, {loss.h(rows)});
  check_close(loss, limit, [&] { indexer_loss<T, D>::forward(gpu(), d, {loss.d(rows)}); });
  indexer_loss<T>::backward(
      exec::reference{}, host_work(), h, {dloss.h(rows)},
      {diq.h(rows, index_heads, index_width), dik.h(entries, index_width), diw.h(rows, index_heads)});
  const auto run = [&] {
    indexer_loss<T, D>::backward(
        gpu(), work(), d, {dloss.d(rows)},
        {diq.d(rows, index_heads, index_width), dik.d(entries, index_width), diw.d(rows, index_heads)});
  };
  check_close(diq, limit, run);
  check_close(dik, limit, run);
  check_close(diw, limit, run);
}
}  // namespace

TEMPLATE_TEST_CASE("indexer_loss: cuda equals reference, forward and gradients", "", float, double) {
  using T = TestType;
  for (const bool sink : {false, true}) {
    check<T>(3, 0, 4, 0, sink);  // nothing visible
    check<T>(70, 0, 4, 0, sink);
    check<T>(70, 0, 4, 6, sink);
    check<T>(9, 500, 4, 40, sink);
  }
}
