// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/index_topk.cuh>

#include <algorithm>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// Small integers: every score is exact in every type, and many are equal.
template <class T>
void check(std::int64_t rows, std::int64_t first, std::int64_t ratio, std::int64_t heads, std::int64_t width,
           std::int64_t k, std::int64_t span) {
  INFO(rows << " rows at " << first << ", " << heads << " x " << width << ", k " << k);
  const std::int64_t entries = (first + rows) / ratio + 1;
  auto q = integers<T>(rows * heads * width, -span, span, 1),
       keys = integers<T>(entries * width, -span, span, 2),
       weights = integers<T>(rows * heads, -span, span, 3);
  auto selected = poison<std::int32_t>(rows * k);
  index_topk<T>::forward(
      exec::reference{},
      {q.h(rows, heads, width), keys.h(entries, width), weights.h(rows, heads), first, ratio},
      {selected.h(rows, k)});
  const auto got = run_twice(selected, [&] {
    index_topk<T, D>::forward(
        gpu(), {q.d(rows, heads, width), keys.d(entries, width), weights.d(rows, heads), first, ratio},
        {selected.d(rows, k)});
  });
  CHECK(same_bytes(got, selected.host));
}
}  // namespace

TEMPLATE_TEST_CASE("index_topk: cuda selects what the reference selects, ties to the lower entry", "", float,
                   double, bf16) {
  using T = TestType;
  check<T>(1, 0, 4, 3, 8, 5, 2);  // nothing visible
  check<T>(3, 0, 4, 3, 8, 5, 2);
  check<T>(37, 0, 4, 5, 16, 4, 1);  // fewer and more entries than k
  check<T>(37, 1000, 4, 16, 20, 16, 1);
  check<T>(5, 8003, 4, 9, 32, 512, 1);
  check<T>(130, 3000, 4, 4, 8, 100, 1);
  check<T>(70, 2500, 4, 64, 128, 64, 1);  // the released shape of a query
}

TEST_CASE("index_topk: entries shared out among blocks, and scores that are all equal") {
  check<float>(1, 80000, 4, 4, 8, 1024, 1);
  check<float>(3, 41001, 4, 4, 16, 513, 1);
  check<float>(2, 40000, 4, 4, 16, 300, 0);
  check<bf16>(1, 40000, 4, 4, 16, 300, 1);
  check<bf16>(1, 20000, 4, 64, 128, 512, 1);
  check<bf16>(200, 1100, 4, 64, 128, 64, 1);
  check<bf16>(520, 1000, 4, 64, 128, 64, 1);   // more queries than pass at a time
  check<bf16>(2, 140000, 4, 64, 128, 512, 1);  // more parts than are joined at once
}

// Terms: each score is a sum of 64 x 128 products; the difference of two orders of summation is below 64
// units of the largest partial sum. The sum of the selected scores decides, because near ties may go either
// way.
TEST_CASE("index_topk: random scores, the selected are as good as the reference's") {
  const std::int64_t rows = 9, heads = 64, width = 128, k = 128, first = 6000, entries = 1503;
  auto q = random<float>(rows * heads * width, 1), keys = random<float>(entries * width, 2),
       weights = random<float>(rows * heads, 3);
  auto selected = poison<std::int32_t>(rows * k);
  index_topk<float, D>::forward(
      gpu(), {q.d(rows, heads, width), keys.d(entries, width), weights.d(rows, heads), first, 4},
      {selected.d(rows, k)});
  const auto got = selected.fetch();
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t visible = (first + t + 1) / 4;
    std::vector<double> score(static_cast<std::size_t>(visible));
    for (std::int64_t s = 0; s < visible; ++s)
      for (std::int64_t h = 0; h < heads; ++h) {
        double dot = 0;
        for (std::int64_t c = 0; c < width; ++c)
          dot += double(q.host[(t * heads + h) * width + c]) * double(keys.host[s * width + c]);
        score[static_cast<std::size_t>(s)] += double(weights.host[t * heads + h]) * std::max(0.0, dot);
      }
    auto sorted = score;
    std::sort(sorted.rbegin(), sorted.rend());
    double worst = INFINITY;
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int32_t s = got[t * k + j];
      REQUIRE((s >= 0 && s < visible && (j == 0 || s > got[t * k + j - 1])));
      worst = std::min(worst, score[static_cast<std::size_t>(s)]);
    }
    CHECK(worst >= sorted[static_cast<std::size_t>(k - 1)] - 64 * unit<float> * std::abs(sorted.front()));
  }
}
