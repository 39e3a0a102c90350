// SPDX-License-Identifier: Apache-2.0
// Kernels that are compiled elsewhere are all there: for every combination of formats that numerics_config
// can ask for this program links, and computes what the reference does. Its numbers are small integers, so
// that no sum rounds.
#include "support/catch.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/quantise.hpp>

#include <cstdint>
#include <span>
#include <tuple>
#include <type_traits>
#include <vector>

static_assert(DSV4_COMPILED_KERNELS);

namespace {

using namespace dsv4;

template <class W>
struct stored {
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;
  std::vector<W> values;
  storage_matrix<const W> view;

  stored(std::int64_t rows, std::int64_t columns, int seed) {
    std::vector<float> wide;
    for (std::int64_t i = 0; i < rows * columns; ++i) wide.push_back(float((i * i + seed) % 7 - 3));
    if constexpr (block_format<W>) {
      codes.resize(static_cast<std::size_t>(rows * W::row_bytes(columns)));
      scales.resize(static_cast<std::size_t>(W::scale_rows(rows) * W::scale_columns(columns)));
      quantise<W, float>::forward(exec::reference{}, {matrix_view<const float>(wide.data(), rows, columns)},
                                  {block_scaled_matrix<W>(codes.data(), scales.data(), rows, columns)});
      view = block_scaled_matrix<const W>(codes.data(), scales.data(), rows, columns);
    } else {
      for (const float v : wide) values.push_back(W(v));
      view = matrix_view<const W>(values.data(), rows, columns);
    }
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        REQUIRE(to_double(view(r, c)) == double(wide[static_cast<std::size_t>(r * columns + c)]));
  }
};

/// What forward(policy, out) leaves in n numbers.
template <class T, class P, class Forward>
std::vector<T> result(const P& p, std::int64_t n, const Forward& forward) {
  std::vector<T> y(static_cast<std::size_t>(n), T(77));
  forward(p, y.data());
  return y;
}
template <class T, class Forward>
void check_exact(std::int64_t n, const Forward& forward) {
  CHECK(result<T>(exec::cpu(2), n, forward) == result<T>(exec::reference{}, n, forward));
}

template <class T, class W, class X>
void check_products() {
  const std::int64_t o = 40, k = 256;
  const stored<W> w(o, k, 1);
  for (const std::int64_t n : {1, 2, 17}) {
    const stored<X> x(n, k, 2);
    check_exact<T>(n * o, [&](const auto& p, T* y) {
      linear<T, space::host, W, X>::forward(p, {x.view, w.view}, {matrix_view<T>(y, n, o)});
    });
  }
}

template <class T, class W>
void check_weights() {
  check_products<T, W, T>();
  check_products<T, W, fp8_activation>();
}

}  // namespace

TEMPLATE_TEST_CASE("products with every format of weights and inputs", "[compiled_kernels]", float, double) {
  using T = TestType;
  check_weights<T, T>();
  check_weights<T, bf16>();
  check_weights<T, fp8_weight>();
  check_weights<T, mxfp4>();
  check_weights<T, mxfp4_ocp>();
}

TEMPLATE_TEST_CASE("rounding to every format of blocks and back", "[compiled_kernels]",
                   (std::tuple<float, fp8_weight>), (std::tuple<float, fp8_activation>),
                   (std::tuple<float, fp8_kv>), (std::tuple<float, mxfp4>), (std::tuple<float, mxfp4_ocp>),
                   (std::tuple<double, fp8_weight>), (std::tuple<double, fp8_activation>),
                   (std::tuple<double, fp8_kv>), (std::tuple<double, mxfp4>),
                   (std::tuple<double, mxfp4_ocp>)) {
  using T = std::tuple_element_t<0, TestType>;
  using F = std::tuple_element_t<1, TestType>;
  const std::int64_t rows = 130, columns = 192;
  const stored<F> m(rows, columns, 3);
  check_exact<T>(rows * columns, [&](const auto& p, T* y) {
    const matrix_view<T> wide(y, rows, columns);
    dequantise<F, T>::forward(p, {m.view}, {wide});
    std::vector<std::uint8_t> codes(m.codes.size());
    std::vector<e8m0> scales(m.scales.size());
    quantise<F, T>::forward(p, {wide}, {block_scaled_matrix<F>(codes.data(), scales.data(), rows, columns)});
    CHECK(codes == m.codes);
    CHECK(scales == m.scales);
    for (T& v : std::span(y, static_cast<std::size_t>(rows * columns))) v /= 3;
    if constexpr (F::block_rows == 1) round_trip<F, T>::forward(p, {}, {wide});
  });
}
