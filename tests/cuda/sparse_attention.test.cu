// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/sparse_attention.cuh>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
enum class far { none, all, some };

template <class T>
void check(std::int64_t rows, std::int64_t heads, std::int64_t width, std::int64_t first, std::int64_t window,
           std::int64_t ratio, far kind, std::int64_t k = 0) {
  INFO(rows << " rows at " << first << ", " << heads << " x " << width << ", window " << window << ", ratio "
            << ratio << ", k " << k);
  const std::int64_t oldest = std::max<std::int64_t>(0, first - window + 1), spare = oldest > 2 ? 2 : 0;
  const std::int64_t locals = first + rows - oldest + spare,
                     entries = kind == far::none ? 0 : (first + rows) / ratio + 1;
  auto q = random<T>(rows * heads * width, 1, 2), local = random<T>(locals * width, 2),
       compressed = random<T>(entries * width, 3), sinks = random<T>(heads, 4, 2);
  buffer<std::int32_t> chosen(rows * k);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t j = 0; j < k; ++j) {  // ascending, then -1
      const std::int64_t visible = (first + t + 1) / ratio, s = j * std::max<std::int64_t>(1, visible / k);
      chosen[t * k + j] = s < visible ? std::int32_t(s) : -1;
    }
  twin<std::int32_t> selected(std::move(chosen));
  auto o = poison<T>(rows * heads * width);
  const double scale = 1 / std::sqrt(double(width));
  const bool some = kind == far::some;
  sparse_attention<T>::forward(exec::reference{},
                               {q.h(rows, heads, width), local.h(locals, width),
                                entries ? compressed.h(entries, width) : matrix_view<T>{},
                                some ? selected.h(rows, k) : matrix_view<std::int32_t>{}, sinks.h(heads),
                                first, oldest - spare, window, kind == far::none ? 0 : ratio, scale},
                               {o.h(rows, heads, width)});
  // Terms: scores of magnitude sqrt(width) at most, rounded before the exponential; the exponential, sums
  // over the keys in a running total, the quotient.
  check_close(o, tolerance<T>(64 + std::sqrt(double(width))), [&] {
    sparse_attention<T, D>::forward(
        gpu(),
        {q.d(rows, heads, width), local.d(locals, width),
         entries ? compressed.d(entries, width) : matrix_view<T, D>{},
         some ? selected.d(rows, k) : matrix_view<std::int32_t, D>{}, sinks.d(heads), first, oldest - spare,
         window, kind == far::none ? 0 : ratio, scale},
        {o.d(rows, heads, width)});
  });
}
}  // namespace

TEMPLATE_TEST_CASE("sparse_attention: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  check<T>(0, 4, 32, 0, 8, 0, far::none);
  check<T>(1, 4, 32, 0, 8, 0, far::none);
  check<T>(3, 5, 48, 2, 8, 4, far::all);  // nothing or one entry visible
  check<T>(21, 4, 32, 0, 8, 16, far::all);
  check<T>(21, 4, 32, 100, 8, 4, far::some, 7);
  check<T>(5, 9, 100, 50, 32, 4, far::some, 16);
  check<T>(7, 64, 512, 300, 128, 4, far::some, 40);
  check<T>(2, 128, 512, 1000, 128, 128, far::all);
}
