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
  auto lse = poison<wide_scalar<T>>(rows * heads);
  const double scale = 1 / std::sqrt(double(width));
  const bool some = kind == far::some;
  sparse_attention<T>::forward(exec::reference{},
                               {q.h(rows, heads, width), local.h(locals, width),
                                entries ? compressed.h(entries, width) : matrix_view<T>{},
                                some ? selected.h(rows, k) : matrix_view<std::int32_t>{}, sinks.h(heads),
                                first, oldest - spare, window, kind == far::none ? 0 : ratio, scale},
                               {o.h(rows, heads, width)}, {lse.h(rows, heads), {}});
  // Terms: scores of magnitude sqrt(width) at most, rounded before the exponential; the exponential, sums
  // over the keys in a running total, the quotient.
  check_close(o, tolerance<T>(64 + std::sqrt(double(width))), [&] {
    sparse_attention<T, D>::forward(
        gpu(),
        {q.d(rows, heads, width), local.d(locals, width),
         entries ? compressed.d(entries, width) : matrix_view<T, D>{},
         some ? selected.d(rows, k) : matrix_view<std::int32_t, D>{}, sinks.d(heads), first, oldest - spare,
         window, kind == far::none ? 0 : ratio, scale},
        {o.d(rows, heads, width)}, {lse.d(rows, heads), {}});
  });
  CHECK(difference(lse.fetch(), lse.host) <= tolerance<T>(64 + std::sqrt(double(width))));
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

namespace {
// Terms: weights and scores as in forward, each gradient a sum over the keys, or over the queries and heads
// that saw a key, of products of magnitude 1.
template <class T>
void check_gradients(std::int64_t rows, std::int64_t heads, std::int64_t width, std::int64_t first,
                     std::int64_t window, std::int64_t ratio, far kind, std::int64_t k = 0) {
  INFO(rows << " rows at " << first << ", " << heads << " x " << width << ", ratio " << ratio << ", k " << k);
  const std::int64_t oldest = std::max<std::int64_t>(0, first - window + 1), locals = first + rows - oldest,
                     entries = kind == far::none ? 0 : (first + rows) / ratio + 1;
  auto q = random<T>(rows * heads * width, 1, 2), local = random<T>(locals * width, 2),
       compressed = random<T>(entries * width, 3), sinks = random<T>(heads, 4, 2),
       d = random<T>(rows * heads * width, 5);
  buffer<std::int32_t> chosen(rows * k);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t visible = (first + t + 1) / ratio,
                         s = j * std::max<std::int64_t>(1, visible / k) + t % 2;
      chosen[t * k + j] = s < visible ? std::int32_t(s) : -1;
    }
  twin<std::int32_t> selected(std::move(chosen));
  auto o = poison<T>(rows * heads * width);
  auto lse = poison<wide_scalar<T>>(rows * heads);
  const bool some = kind == far::some;
  const auto host_in = [&]() -> typename sparse_attention<T>::inputs {
    return {q.h(rows, heads, width),
            local.h(locals, width),
            entries ? compressed.h(entries, width) : matrix_view<T>{},
            some ? selected.h(rows, k) : matrix_view<std::int32_t>{},
            sinks.h(heads),
            first,
            oldest,
            window,
            kind == far::none ? 0 : ratio,
            1 / std::sqrt(double(width))};
  };
  const auto device_in = [&]() -> typename sparse_attention<T, D>::inputs {
    return {q.d(rows, heads, width),
            local.d(locals, width),
            entries ? compressed.d(entries, width) : matrix_view<T, D>{},
            some ? selected.d(rows, k) : matrix_view<std::int32_t, D>{},
            sinks.d(heads),
            first,
            oldest,
            window,
            kind == far::none ? 0 : ratio,
            1 / std::sqrt(double(width))};
  };
  sparse_attention<T>::forward(exec::reference{}, host_in(), {o.h(rows, heads, width)},
                               {lse.h(rows, heads), {}});
  sparse_attention<T, D>::forward(gpu(), device_in(), {o.d(rows, heads, width)}, {lse.d(rows, heads), {}});
  auto dq = poison<T>(rows * heads * width), dlocal = poison<T>(locals * width),
       dcompressed = poison<T>(entries * width), dsinks = random<T>(heads, 6);
  sparse_attention<T>::backward(
      exec::reference{}, host_work(), host_in(), {lse.h(rows, heads), o.h(rows, heads, width)},
      {d.h(rows, heads, width)},
      {dq.h(rows, heads, width), dlocal.h(locals, width),
       entries ? dcompressed.h(entries, width) : matrix_view<T>{}, dsinks.h(heads)});
  const auto run = [&] {
    sparse_attention<T, D>::backward(
        gpu(), work(), device_in(), {lse.d(rows, heads), o.d(rows, heads, width)}, {d.d(rows, heads, width)},
        {dq.d(rows, heads, width), dlocal.d(locals, width),
         entries ? dcompressed.d(entries, width) : matrix_view<T, D>{}, dsinks.d(heads)});
  };
  const auto close = [&](const char* name, twin<T>& y) {
    INFO(name);
    double largest = 1;
    for (const T v : y.host) largest = std::max(largest, std::abs(double(v)));
    const auto got = run_twice(y, run);
    double worst = 0;
    for (std::int64_t i = 0; i < y.size(); ++i) {
      const double d = std::abs(double(got[i]) - double(y.host[i]));
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
    CHECK(worst <=
          (std::is_same_v<T, bf16> ? 2 * unit<bf16> : tolerance<T>(200 + double(rows * heads))) * largest);
  };
  close("dq", dq);
  close("dlocal", dlocal);
  close("dcompressed", dcompressed);
  close("dsinks", dsinks);
}
}  // namespace

TEMPLATE_TEST_CASE("sparse_attention: gradients, cuda equals reference", "", float, double) {
  using T = TestType;
  check_gradients<T>(1, 4, 32, 0, 8, 0, far::none);
  check_gradients<T>(3, 5, 48, 0, 8, 4, far::all);
  check_gradients<T>(45, 4, 32, 0, 8, 16, far::all);
  check_gradients<T>(45, 4, 100, 20, 8, 4, far::some, 7);
  check_gradients<T>(9, 9, 512, 50, 32, 4, far::some, 16);
}

// bf16: weights and their gradients are rounded before they are multiplied, 2^-9 of each term; sums over
// keys, or over queries and heads, of both signs average that out. Compared with the largest gradient.
TEST_CASE("sparse_attention: gradients, bf16 on the matrix units") {
  check_gradients<bf16>(70, 64, 512, 0, 128, 4, far::some, 10);
  check_gradients<bf16>(150, 64, 512, 0, 20, 16, far::all);
  check_gradients<bf16>(40, 128, 512, 300, 128, 4, far::some, 24);
  check_gradients<bf16>(3, 64, 512, 0, 128, 0, far::none);
}

// The matrix units' kernel: whole queries per block, parts of them, both groups of heads, tiles that end
// early.
TEST_CASE("sparse_attention: bf16 on the matrix units") {
  check<bf16>(150, 64, 512, 0, 128, 4, far::some, 24);
  check<bf16>(70, 128, 512, 90, 100, 128, far::all);
  check<bf16>(1, 64, 512, 5000, 128, 4, far::some, 512);
  check<bf16>(3, 128, 512, 2000, 128, 16, far::all);
  check<bf16>(1, 64, 512, 0, 128, 0, far::none);
}
