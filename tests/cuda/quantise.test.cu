// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/quantise.cuh>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

/// Magnitudes over all of T's range, some of them powers of two, zeros, and a few that are not finite.
template <class T>
twin<T> wild(std::int64_t count, bool finite) {
  buffer<T> b(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const double r = noise(5, i), e = std::round(noise(6, i / 50) * 120 + noise(7, i) * 6);
    b[i] = T(i % 7 == 0 ? std::copysign(std::exp2(e), r) : i % 11 == 0 ? 0 : r * std::exp2(e));
  }
  if (!finite && count > 9) b[3] = T(double(NAN)), b[count - 1] = T(double(INFINITY));
  return twin<T>(std::move(b));
}

template <class F, class T>
void check() {
  for (const std::int64_t width : {1, 31, 64, 129, 300})
    for (const std::int64_t rows : {0, 1, 3, 130})
      for (const bool finite : {true, false}) {
        INFO(rows << " x " << width);
        auto x = wild<T>(rows * width, finite);
        auto codes = integers<std::uint8_t>(rows * F::row_bytes(width), 0, 0);
        auto scales = poison<e8m0>(F::scale_rows(rows) * F::scale_columns(width));
        auto back = poison<T>(rows * width);
        const block_scaled_matrix<F> hq(codes.host.data(), scales.host.data(), rows, width);
        const block_scaled_matrix<F, D> dq(codes.device.data(), scales.device.data(), rows, width);
        quantise<F, T>::forward(exec::reference{}, {x.h(rows, width)}, {hq});
        const auto got =
            run_twice(codes, [&] { quantise<F, T, D>::forward(gpu(), {x.d(rows, width)}, {dq}); });
        CHECK(same_bytes(got, codes.host));
        CHECK(same_bytes(scales.fetch(), scales.host));
        if (!finite) continue;  // NaN differs from itself below
        dequantise<F, T>::forward(exec::reference{}, {hq}, {back.h(rows, width)});
        check_close(back, 0, [&] { dequantise<F, T, D>::forward(gpu(), {dq}, {back.d(rows, width)}); });
        if constexpr (F::block_rows == 1) {
          round_trip<F, T>::forward(exec::reference{}, {}, {x.h(rows, width)});
          check_close(x, 0, [&] { round_trip<F, T, D>::forward(gpu(), {}, {x.d(rows, width)}); });
        }
      }
}

template <class T>
void check_bf16() {
  for (const std::int64_t count : {0, 1, 33, 5000}) {
    auto x = wild<T>(count, false);
    auto y = poison<bf16>(count);
    round_to_bf16<T, bf16>::forward(exec::reference{}, {x.h(count)}, {y.h(count)});
    const auto got =
        run_twice(y, [&] { round_to_bf16<T, bf16, D>::forward(gpu(), {x.d(count)}, {y.d(count)}); });
    CHECK(same_bytes(got, y.host));
    auto finite = wild<T>(count, true);  // and in place
    round_to_bf16<T, T>::forward(exec::reference{}, {finite.h(count)}, {finite.h(count)});
    round_to_bf16<T, T, D>::forward(gpu(), {finite.d(count)}, {finite.d(count)});
    CHECK(same_bytes(finite.fetch(), finite.host));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("quantise, dequantise, round_trip: cuda gives the reference's bits", "", fp8_weight,
                   fp8_activation, fp8_kv, mxfp4, mxfp4_ocp) {
  check<TestType, float>();
  check<TestType, double>();
}

TEST_CASE("round_to_bf16: cuda gives the reference's bits") {
  check_bf16<float>();
  check_bf16<double>();
}
