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
// On the same stream as gpu(), so that its arrays and workspace can be shared.
const exec::cuda& gpu_in_any_order() {
  static const exec::cuda p(gpu().stream(), exec::cuda::options{.sums = exec::sum_order::any});
  return p;
}

// Terms: weights and scores as in forward, each gradient a sum over the keys, or over the queries and heads
// that saw a key, of products of magnitude 1.
template <class T>
void check_gradients(std::int64_t rows, std::int64_t heads, std::int64_t width, std::int64_t first,
                     std::int64_t window, std::int64_t ratio, far kind, std::int64_t k = 0,
                     exec::sum_order sums = exec::sum_order::fixed) {
  const bool fixed = sums == exec::sum_order::fixed;
  INFO(rows << " rows at " << first << ", " << heads << " x " << width << ", ratio " << ratio << ", k " << k
            << (fixed ? ", fixed order" : ", any order"));
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
        fixed ? gpu() : gpu_in_any_order(), work(), device_in(),
        {lse.d(rows, heads), o.d(rows, heads, width)}, {d.d(rows, heads, width)},
        {dq.d(rows, heads, width), dlocal.d(locals, width),
         entries ? dcompressed.d(entries, width) : matrix_view<T, D>{}, dsinks.d(heads)});
  };
  const auto close = [&](const char* name, twin<T>& y, bool same_bits) {
    INFO(name);
    double largest = 1;
    for (const T v : y.host) largest = std::max(largest, std::abs(double(v)));
    buffer<T> got;
    if (same_bits) {
      got = run_twice(y, run);
    } else {
      y.reset();
      run();
      got = y.fetch();
    }
    double worst = 0;
    for (std::int64_t i = 0; i < y.size(); ++i) {
      const double d = std::abs(double(got[i]) - double(y.host[i]));
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
    CHECK(worst <=
          (std::is_same_v<T, bf16> ? 2 * unit<bf16> : tolerance<T>(200 + double(rows * heads))) * largest);
  };
  close("dq", dq, true);
  close("dlocal", dlocal, fixed);
  close("dcompressed", dcompressed, fixed);
  close("dsinks", dsinks, true);
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
  for (const auto sums : {exec::sum_order::fixed, exec::sum_order::any}) {
    check_gradients<bf16>(70, 64, 512, 0, 128, 4, far::some, 10, sums);
    check_gradients<bf16>(150, 64, 512, 0, 20, 16, far::all, 0, sums);
    check_gradients<bf16>(40, 128, 512, 300, 128, 4, far::some, 24, sums);
    check_gradients<bf16>(9, 64, 512, 700, 100, 4, far::some, 170, sums);
    check_gradients<bf16>(3, 64, 512, 0, 128, 0, far::none, 0, sums);
  }
}

// Sums in any order are what a policy may ask for; other types and widths keep theirs.
TEST_CASE("sparse_attention: gradients where any order is allowed and none is faster") {
  check_gradients<float>(45, 4, 100, 20, 8, 4, far::some, 7, exec::sum_order::any);
  check_gradients<bf16>(21, 5, 64, 20, 8, 4, far::all, 0, exec::sum_order::any);
}

TEST_CASE("sparse_attention: keys' gradients in any order, those that are wanted") {
  const std::int64_t rows = 50, heads = 64, width = 512, entries = 12;
  auto q = random<bf16>(rows * heads * width, 1, 2), local = random<bf16>(rows * width, 2),
       compressed = random<bf16>(entries * width, 3), sinks = random<bf16>(heads, 4, 2),
       d = random<bf16>(rows * heads * width, 5);
  auto o = poison<bf16>(rows * heads * width), dq = poison<bf16>(rows * heads * width),
       dlocal = poison<bf16>(rows * width), dcompressed = poison<bf16>(entries * width);
  auto lse = poison<float>(rows * heads);
  const sparse_attention<bf16, D>::inputs in{q.d(rows, heads, width),
                                             local.d(rows, width),
                                             compressed.d(entries, width),
                                             {},
                                             sinks.d(heads),
                                             0,
                                             0,
                                             16,
                                             4,
                                             1 / std::sqrt(double(width))};
  sparse_attention<bf16, D>::forward(gpu(), in, {o.d(rows, heads, width)}, {lse.d(rows, heads), {}});
  const auto run = [&](const exec::cuda& p, const sparse_attention<bf16, D>::gradients& g) {
    sparse_attention<bf16, D>::backward(p, work(), in, {lse.d(rows, heads), o.d(rows, heads, width)},
                                        {d.d(rows, heads, width)}, g);
  };
  run(gpu(), {dq.d(rows, heads, width), dlocal.d(rows, width), dcompressed.d(entries, width), {}});
  const auto want_dq = dq.fetch(), want_local = dlocal.fetch(), want_compressed = dcompressed.fetch();
  const auto close = [](const buffer<bf16>& got, const buffer<bf16>& want) {
    double largest = 1, worst = 0;
    for (const bf16 v : want) largest = std::max(largest, std::abs(double(v)));
    for (std::int64_t i = 0; i < want.size(); ++i) {
      const double e = std::abs(double(got[i]) - double(want[i]));
      worst = std::isnan(e) ? INFINITY : std::max(worst, e);
    }
    CHECK(worst <= 2 * unit<bf16> * largest);
  };
  const auto untouched = [](twin<bf16>& y) {
    const auto got = y.fetch();
    for (const bf16 v : got) CHECK_FALSE(double(v) == double(v));
  };
  for (twin<bf16>* y : {&dq, &dlocal, &dcompressed}) y->reset();
  run(gpu_in_any_order(), {{}, dlocal.d(rows, width), {}, {}});
  close(dlocal.fetch(), want_local);
  untouched(dcompressed);
  dlocal.reset();
  run(gpu_in_any_order(), {dq.d(rows, heads, width), {}, dcompressed.d(entries, width), {}});
  close(dcompressed.fetch(), want_compressed);
  CHECK(same_bytes(dq.fetch(), want_dq));
  untouched(dlocal);
  run(gpu_in_any_order(), {dq.d(rows, heads, width), {}, {}, {}});
  CHECK(same_bytes(dq.fetch(), want_dq));
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
