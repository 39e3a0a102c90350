// SPDX-License-Identifier: Apache-2.0
// Products with bf16 and block-scaled weights and inputs.
#include "support/catch.hpp"
#include <dsv4/ops/cpu/quantise.hpp>
#include <dsv4/ops/cpu/stored_dispatch.hpp>
#include <dsv4/ops/cpu/stored_linear.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/quantise.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace dsv4;
using detail::instruction_set;

constexpr auto every_set = {instruction_set::portable, instruction_set::avx2, instruction_set::avx512,
                            instruction_set::avx512_vbmi};

/// Rows [skipped, skipped + rows) of a random matrix stored as W, rows `pad` elements apart in memory. The
/// storage ends with the last row, so that the sanitizers see a read beyond it.
template <class W>
struct stored {
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;
  std::vector<W> values;
  storage_matrix<const W> view;

  stored(std::int64_t rows, std::int64_t columns, std::int64_t pad, unsigned seed, std::int64_t skipped = 0) {
    std::mt19937 random(seed);
    if constexpr (block_format<W>) {
      const std::int64_t all = rows + skipped, stride = W::row_bytes(columns) + pad;
      codes.resize(static_cast<std::size_t>(std::max<std::int64_t>(all * stride - pad, 0)));
      for (auto& c : codes) {
        c = static_cast<std::uint8_t>(random());
        if (!W::packed && (c & 0x7f) == 0x7f) c = 0;
      }
      scales.resize(static_cast<std::size_t>(W::scale_rows(all) * W::scale_columns(columns)));
      for (auto& s : scales) s = e8m0::from_bits(static_cast<std::uint8_t>(117 + random() % 20));
      block_scaled_matrix<const W> whole(codes.data(), scales.data(), all, columns);
      whole.row_stride = stride;
      view = whole.rows(skipped, rows);
    } else {
      std::normal_distribution<float> normal;
      values.resize(static_cast<std::size_t>(rows * (columns + pad)));
      for (auto& v : values) v = W(normal(random));
      view = matrix_view<const W>(values.data(), rows, columns);
      view.stride[0] = columns + pad;
    }
  }
};

/// The same numbers as T.
template <class T, class W>
std::vector<T> decoded(const storage_matrix<const W>& m) {
  std::vector<T> out;
  for (std::int64_t r = 0; r < m.extent[0]; ++r)
    for (std::int64_t c = 0; c < m.extent[1]; ++c) out.push_back(T(widen(m(r, c))));
  return out;
}

template <class T>
bool same_bits(const T* a, const T* b, std::int64_t n) {
  return n == 0 || std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}

/// Whether every found(t, o) lies within 2 K eps sum|x||w| of the reference: a sum of K products in any
/// order.
template <class T, class W, class X>
bool near_reference(const storage_matrix<const X>& x, const storage_matrix<const W>& w,
                    const matrix_view<const T>& found) {
  const std::int64_t n = x.extent[0], o = w.extent[0], k = x.extent[1];
  std::vector<T> exact(static_cast<std::size_t>(n * o));
  linear<T, space::host, W, X>::forward(exec::reference{}, {x, w}, {matrix_view<T>(exact.data(), n, o)});
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t j = 0; j < o; ++j) {
      double size = 0;
      for (std::int64_t i = 0; i < k; ++i) size += std::abs(to_double(x(t, i)) * to_double(w(j, i)));
      const double bound = 2 * double(k) * double(std::numeric_limits<T>::epsilon()) * size;
      const double error = std::abs(double(found(t, j)) - double(exact[static_cast<std::size_t>(t * o + j)]));
      if (!(error <= bound)) return false;
    }
  return true;
}

template <class T, class W, class X>
struct combination {
  using scalar = T;
  using weight = W;
  using input = X;
};

}  // namespace

#define DSV4_COMBINATIONS                                                                             \
  (combination<float, bf16, float>), (combination<float, fp8_weight, float>),                         \
      (combination<float, mxfp4, float>), (combination<float, bf16, fp8_activation>),                 \
      (combination<float, fp8_weight, fp8_activation>), (combination<float, mxfp4, fp8_activation>),  \
      (combination<float, float, fp8_activation>), (combination<double, bf16, double>),               \
      (combination<double, fp8_weight, double>), (combination<double, mxfp4, double>),                \
      (combination<double, bf16, fp8_activation>), (combination<double, fp8_weight, fp8_activation>), \
      (combination<double, mxfp4, fp8_activation>), (combination<double, double, fp8_activation>)

TEMPLATE_TEST_CASE("stored linear is near the reference and has the bits of linear with decoded operands",
                   "[stored_linear]", DSV4_COMBINATIONS) {
  using T = typename TestType::scalar;
  using W = typename TestType::weight;
  using X = typename TestType::input;
  const exec::cpu p(2);
  for (const std::int64_t n : {0, 1, 2, 3, 4, 5, 7, 200})
    for (const std::int64_t k : {0, 1, 7, 31, 32, 33, 95, 128, 130, 1025, 2500})
      for (const std::int64_t o : {1, 3, 9, 67, 130}) {
        if (n > 5 && k > 130 && o > 9) continue;  // enough is enough
        const stored<X> x(n, k, 3, 1);
        const stored<W> w(o, k, 5, 2, 77);
        std::vector<T> y(static_cast<std::size_t>(n * o)), z = y;
        const matrix_view<T> out(y.data(), n, o);
        linear<T, space::host, W, X>::forward(p, {x.view, w.view}, {out});
        INFO("n " << n << ", k " << k << ", o " << o);
        if (n * o * k < 100000) CHECK(near_reference<T, W, X>(x.view, w.view, out));
        if (detail::bf16_products<T, W, X>()) continue;
        const auto dx = decoded<T, X>(x.view), dw = decoded<T, W>(w.view);
        linear<T>::forward(p, {matrix_view<const T>(dx.data(), n, k), matrix_view<const T>(dw.data(), o, k)},
                           {matrix_view<T>(z.data(), n, o)});
        CHECK(same_bits(y.data(), z.data(), n * o));
      }
}

TEMPLATE_TEST_CASE(
    "a row's product with stored weights has the same bits alone, in any batch, with any threads",
    "[stored_linear]", DSV4_COMBINATIONS) {
  using T = typename TestType::scalar;
  using W = typename TestType::weight;
  using X = typename TestType::input;
  using op = linear<T, space::host, W, X>;
  for (const std::int64_t k : {5, 100, 1100, 2080}) {
    const std::int64_t rows = 201, o = 75;
    const stored<X> x(rows, k, 1, 4);
    const stored<W> w(o, k, 0, 5, 100);
    std::vector<T> all(static_cast<std::size_t>(rows * o)), some = all;
    op::forward(exec::cpu(1), {x.view, w.view}, {matrix_view<T>(all.data(), rows, o)});
    for (const int threads : {1, 2, 4}) {
      const exec::cpu p(threads);
      for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 7, 17, 193})
        for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, rows - n}) {
          op::forward(p, {x.view.rows(first, n), w.view}, {matrix_view<T>(some.data(), n, o)});
          INFO("k " << k << ", threads " << threads << ", rows " << n << " from " << first);
          CHECK(same_bits(some.data(), all.data() + first * o, n * o));
        }
      // Nor does a column of y depend on the columns beside it.
      op::forward(p, {x.view, w.view.rows(41, 1)}, {matrix_view<T>(some.data(), rows, 1)});
      bool same = true;
      for (std::int64_t t = 0; t < rows; ++t)
        same = same && some[static_cast<std::size_t>(t)] == all[static_cast<std::size_t>(t * o + 41)];
      CHECK(same);
    }
  }
}

TEMPLATE_TEST_CASE("grouped and batched products with stored weights have the bits of linear",
                   "[stored_linear]", DSV4_COMBINATIONS) {
  using T = typename TestType::scalar;
  using W = typename TestType::weight;
  using X = typename TestType::input;
  const std::int64_t k = 1056, o = 21, experts = 6, rows = 212;
  const std::vector<std::int64_t> offsets{0, 0, 1, 8, 8, 210, 212};
  const stored<X> x(rows, k, 0, 1);
  std::vector<stored<W>> weights;
  for (unsigned e = 0; e < experts; ++e) weights.emplace_back(o, k, 0, 2 + e);
  storage_stack<const W> stack;
  std::vector<W> dense;
  std::vector<storage_matrix<const W>> views;
  if constexpr (block_format<W>) {
    for (const auto& w : weights) views.push_back(w.view);
    views[0] = views[3] = {};  // an expert without rows need not be there
    views[0].extent[0] = views[3].extent[0] = o, views[0].extent[1] = views[3].extent[1] = k;
    stack.matrices = views.data();
    stack.extent[0] = experts, stack.extent[1] = o, stack.extent[2] = k;
  } else {
    for (const auto& w : weights) dense.insert(dense.end(), w.values.begin(), w.values.end());
    stack = storage_stack<const W>(dense.data(), experts, o, k);
  }
  for (const int threads : {1, 2, 4}) {
    const exec::cpu p(threads);
    std::vector<T> y(static_cast<std::size_t>(rows * o)), z = y;
    grouped_linear<T, space::host, W, X>::forward(
        p, {x.view, vector_view<const std::int64_t>(offsets.data(), 7), stack},
        {matrix_view<T>(y.data(), rows, o)});
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t begin = offsets[std::size_t(e)], n = offsets[std::size_t(e) + 1] - begin;
      linear<T, space::host, W, X>::forward(exec::cpu(1),
                                            {x.view.rows(begin, n), weights[std::size_t(e)].view},
                                            {matrix_view<T>(z.data() + begin * o, n, o)});
    }
    CHECK(same_bits(y.data(), z.data(), rows * o));
    if constexpr (std::is_same_v<X, T> && !std::is_same_v<W, T>) {
      if constexpr (block_format<W>) views[0] = weights[0].view;
      storage_stack<const W> two = stack;
      two.extent[0] = 2;
      const tensor_view<const T> xs(x.view.data, rows / 2, 2, k);
      const tensor_view<T> ys(y.data(), rows / 2, 2, o);
      batched_linear<T, space::host, W>::forward(p, {xs, two}, {ys});
      for (std::size_t g = 0; g < 2; ++g) {
        linear<T, space::host, W>::forward(exec::cpu(1), {x.view, weights[g].view},
                                           {matrix_view<T>(z.data(), rows, o)});
        bool same = true;
        for (std::int64_t t = 0; t < rows / 2; ++t)
          same = same && same_bits(&ys(t, std::int64_t(g), 0), z.data() + (2 * t + std::int64_t(g)) * o, o);
        CHECK(same);
      }
    }
  }
}

TEMPLATE_TEST_CASE("every instruction set decodes every code under every scale exactly", "[stored_linear]",
                   (std::tuple<float, fp8_weight>), (std::tuple<float, mxfp4>),
                   (std::tuple<double, fp8_weight>), (std::tuple<double, mxfp4>),
                   (std::tuple<float, fp8_activation>), (std::tuple<float, fp8_kv>),
                   (std::tuple<float, mxfp4_ocp>)) {
  using T = std::tuple_element_t<0, TestType>;
  using W = std::tuple_element_t<1, TestType>;
  const std::int64_t columns = W::packed ? 16 + 13 : 256 + 13;  // every code, then a part of a step
  std::vector<std::uint8_t> row(static_cast<std::size_t>(W::row_bytes(columns)));
  for (std::int64_t c = 0; c < columns; ++c)
    W::set(row.data(), c, W::element::from_bits(static_cast<std::uint8_t>(W::packed ? c % 16 : c)));
  if (W::packed)
    row.back() = static_cast<std::uint8_t>(row.back() | 0x70);  // beyond the last column: not read
  for (unsigned bits = 0; bits < 256; ++bits) {
    std::vector<e8m0> scales(static_cast<std::size_t>(W::scale_columns(columns)),
                             e8m0::from_bits(static_cast<std::uint8_t>(bits)));
    const block_scaled_matrix<const W> m(row.data(), scales.data(), 1, columns);
    for (const auto set : every_set) {
      if (!detail::supported(set)) continue;
      std::vector<T> to(static_cast<std::size_t>(columns) + 1, T(77));
      detail::stored_kernels<T, W>(set).decode(m, 0, columns, to.data(), columns);
      bool same = to.back() == T(77);
      for (std::int64_t c = 0; c < columns; ++c) {
        const T want = T(m(0, c)), got = to[static_cast<std::size_t>(c)];
        same = same && (std::isnan(want) ? std::isnan(got) : same_bits(&want, &got, 1));
      }
      INFO("scale " << bits << ", instruction set " << static_cast<int>(set));
      CHECK(same);
    }
  }
}

TEMPLATE_TEST_CASE("every instruction set multiplies stored weights like its dense kernels",
                   "[stored_linear]", (std::tuple<float, bf16>), (std::tuple<float, fp8_weight>),
                   (std::tuple<float, mxfp4>), (std::tuple<double, bf16>), (std::tuple<double, fp8_weight>),
                   (std::tuple<double, mxfp4>)) {
  using T = std::tuple_element_t<0, TestType>;
  using W = std::tuple_element_t<1, TestType>;
  for (const auto set : every_set) {
    if (!detail::supported(set)) continue;
    for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 13})
      for (const std::int64_t k : {1, 17, 33, 64, 1300})
        for (const std::int64_t o : {1, 4, 13, 64}) {
          const stored<T> x(n, k, 2, 1);
          const stored<W> w(o, k, 1, 2, 120);
          std::vector<T> y(static_cast<std::size_t>(n * o)), z = y;
          std::vector<T> scratch(static_cast<std::size_t>(detail::stored_scratch<T>));
          detail::stored_kernels<T, W>(set).product(x.view.data, k + 2, n, w.view, scratch.data(), y.data(),
                                                    o);
          const auto dense = decoded<T, W>(w.view);
          detail::cpu_kernels<T>(set).gemm_nt(x.view.data, k + 2, n, dense.data(), k, o, k, z.data(), o);
          INFO("instruction set " << static_cast<int>(set) << ", n " << n << ", k " << k << ", o " << o);
          CHECK(same_bits(y.data(), z.data(), n * o));
        }
  }
}

TEMPLATE_TEST_CASE("one row of any numbers has the bits of the dense kernels", "[stored_linear]", fp8_weight,
                   fp8_activation, fp8_kv, mxfp4) {
  using W = TestType;
  const std::int64_t o = 19, k = 2 * 1024 + 96;
  const float infinity = std::numeric_limits<float>::infinity();
  // A number that x has in one place, and how far scales lie from 1, and from each other.
  const float numbers[] = {
      0.f,       -0.f,    0x1p-50f,  -0x1.8p-51f, 0x1p-149f,
      0x1.fp39f, 0x1p40f, -0x1p127f, infinity,    std::numeric_limits<float>::quiet_NaN()};
  const std::pair<int, int> spreads[] = {{0, 1},   {-12, 25}, {-60, 25},  {16, 25},
                                         {17, 25}, {-70, 26}, {-127, 255}};
  for (const auto set : every_set) {
    if (!detail::supported(set)) continue;
    for (const auto& [least, spread] : spreads)
      for (const float number : numbers)
        for (const bool nan_code : {false, true}) {
          if (nan_code && (W::packed || number != 0)) continue;
          stored<float> x(1, k, 0, 1);
          x.values[1030] = number;
          stored<W> w(o, k, 3, 2, 120);
          std::mt19937 random(3);
          for (auto& s : w.scales)
            s = e8m0::from_bits(
                static_cast<std::uint8_t>(127 + least + static_cast<int>(random() % unsigned(spread))));
          const auto stride = static_cast<std::size_t>(w.view.row_stride);
          if (nan_code) w.codes[122 * stride + 5] = 0x7f, w.codes[129 * stride + 1500] = 0xff;
          std::vector<float> y(static_cast<std::size_t>(o)), z = y;
          std::vector<float> scratch(static_cast<std::size_t>(detail::stored_scratch<float>));
          detail::stored_kernels<float, W>(set).product(x.values.data(), k, 1, w.view, scratch.data(),
                                                        y.data(), o);
          const auto dense = decoded<float, W>(w.view);
          detail::cpu_kernels<float>(set).gemm_nt(x.values.data(), k, 1, dense.data(), k, o, k, z.data(), o);
          INFO("instruction set " << static_cast<int>(set) << ", number " << number << ", scales from 2^"
                                  << least);
          bool same = true;
          for (std::size_t j = 0; j < y.size(); ++j)
            same = same && (std::isnan(z[j]) ? std::isnan(y[j]) : same_bits(&y[j], &z[j], 1));
          CHECK(same);
          if (nan_code) CHECK((std::isnan(y[2]) && std::isnan(y[9])));
        }
  }
}

TEMPLATE_TEST_CASE("a NaN scale makes NaN of the products that meet it, and of no others", "[stored_linear]",
                   fp8_weight, mxfp4) {
  using W = TestType;
  const std::int64_t n = 6, o = 260, k = 300;
  const stored<float> x(n, k, 0, 1);
  stored<W> w(o, k, 0, 2);
  w.scales[static_cast<std::size_t>(W::scale_columns(k)) + 1] = e8m0::from_bits(255);  // second row of blocks
  const stored<fp8_activation> qx(n, k, 0, 3);
  auto nan_scales = qx.scales;
  nan_scales.back() = e8m0::from_bits(255);  // the last row of x
  block_scaled_matrix<const fp8_activation> qv = qx.view;
  qv.scales = nan_scales.data();
  for (const std::int64_t rows : {std::int64_t{1}, n}) {
    std::vector<float> y(static_cast<std::size_t>(rows * o)), z = y;
    linear<float, space::host, W>::forward(exec::cpu(2), {x.view.rows(0, rows), w.view},
                                           {matrix_view<float>(y.data(), rows, o)});
    linear<float, space::host, W, fp8_activation>::forward(exec::cpu(2), {qv.rows(n - rows, rows), w.view},
                                                           {matrix_view<float>(z.data(), rows, o)});
    bool right = true;
    for (std::int64_t t = 0; t < rows; ++t)
      for (std::int64_t j = 0; j < o; ++j) {
        const auto at = static_cast<std::size_t>(t * o + j);
        const bool of_weight = j / W::block_rows == 1;
        right = right && std::isnan(y[at]) == of_weight && std::isnan(z[at]) == (of_weight || t == rows - 1);
      }
    CHECK(right);
  }
}

namespace {

/// Row t of products alone, `one`, has the bits that it has in `all`, and is as near to `want` as floats are
/// to the product of dx and dw. Where floats are subnormal each step loses up to 2^-149 instead of a share of
/// the sum.
void check_row(std::int64_t t, const std::vector<float>& one, const std::vector<float>& all,
               const std::vector<float>& want, const std::vector<double>& dx, const std::vector<double>& dw) {
  const auto o = one.size(), k = dw.size() / o, row = static_cast<std::size_t>(t);
  bool right = true, same = true;
  for (std::size_t j = 0; j < o; ++j) {
    const std::size_t at = row * o + j;
    same = same && (std::isnan(one[j]) ? std::isnan(all[at]) : same_bits(&one[j], &all[at], 1));
    double size = 0;
    for (std::size_t i = 0; i < k; ++i) size += std::abs(dx[row * k + i] * dw[j * k + i]);
    if (std::isnan(size))
      right = right && std::isnan(all[at]);
    else if (size < 0x1p127)  // beyond, floats may overflow on the way
      right =
          right && std::abs(double(all[at]) - double(want[at])) <= double(k) * (0x1p-22 * size + 0x1p-149);
  }
  CHECK(same);
  CHECK(right);
}

}  // namespace

TEMPLATE_TEST_CASE("products are right under every pair of scales, in any batch", "[stored_linear]",
                   fp8_weight, mxfp4) {
  using W = TestType;
  using op = linear<float, space::host, W, fp8_activation>;
  const std::int64_t n = 12, o = 255, k = 70;
  stored<W> w(o, k, 0, 2);
  stored<fp8_activation> x(n, k, 0, 3);
  for (std::int64_t t = 0; t < n; ++t)
    x.scales[static_cast<std::size_t>(t)] = e8m0::from_bits(static_cast<std::uint8_t>(t * 254 / (n - 1)));
  for (std::size_t i = 0; i < w.scales.size(); ++i)
    w.scales[i] = e8m0::from_bits(static_cast<std::uint8_t>(
        W::block_rows > 1 ? 60 + 80 * i : i / static_cast<std::size_t>(W::scale_columns(k))));
  std::vector<float> all(static_cast<std::size_t>(n * o)), want = all, one(static_cast<std::size_t>(o));
  op::forward(exec::cpu(2), {x.view, w.view}, {matrix_view<float>(all.data(), n, o)});
  op::forward(exec::reference{}, {x.view, w.view}, {matrix_view<float>(want.data(), n, o)});
  const auto dx = decoded<double, fp8_activation>(x.view), dw = decoded<double, W>(w.view);
  for (std::int64_t t = 0; t < n; ++t) {
    op::forward(exec::cpu(2), {x.view.rows(t, 1), w.view}, {matrix_view<float>(one.data(), 1, o)});
    INFO("row " << t);
    check_row(t, one, all, want, dx, dw);
  }
}

#if DSV4_X86_KERNELS

namespace {

/// The ways of bf16 products that this machine has: whether with tiles.
template <class W>
std::vector<bool> bf16_ways() {
  std::vector<bool> ways;
  if (detail::bf16_products<float, W, fp8_activation>()) {
    ways.push_back(false);
    if (detail::amx::available())
      ways.push_back(true);
    else
      WARN("not tested: products on AMX tiles, which this machine or its system lacks");
  } else {
    WARN("not tested: products of bf16, which this machine lacks");
  }
  return ways;
}

/// Rows [offsets[g], offsets[g + 1]) of x times w, for all g.
template <class W>
std::vector<float> bf16_product(bool tiles, int threads, const storage_matrix<const fp8_activation>& x,
                                const storage_matrix<const W>& w, const std::vector<std::int64_t>& offsets) {
  const std::int64_t n = x.extent[0], o = w.extent[0];
  // Behind the results one more, which has to stay.
  std::vector<float> y(static_cast<std::size_t>(n * o) + 1, 77.f);
  std::vector<detail::bf16_problem<W>> problems;
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g)
    problems.push_back({offsets[g], offsets[g + 1] - offsets[g], w});
  detail::bf16_gemm_nt<W, fp8_activation>(exec::cpu(threads), x, matrix_view<float>(y.data(), n, o), problems,
                                          tiles);
  CHECK(y.back() == 77.f);
  y.pop_back();
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("both ways of bf16 products are near the reference", "[stored_linear]", fp8_weight, mxfp4,
                   mxfp4_ocp) {
  using W = TestType;
  for (const bool tiles : bf16_ways<W>())
    for (const std::int64_t n : {0, 1, 2, 3, 5, 9, 15, 16, 17, 33, 193})
      for (const std::int64_t k : {0, 1, 7, 33, 63, 65, 127, 128, 129, 255, 257, 385, 2049, 2209})
        for (const std::int64_t o : {1, 15, 16, 17, 33, 67}) {
          if (n * k * o > 100000 && !(n == 17 && k == 2209 && o == 33)) continue;  // enough is enough
          const stored<fp8_activation> x(n, k, 3, 1);
          // The scales of fp8_weight change within a tile of rows.
          const stored<W> w(o, k, 5, 2, 120);
          const auto y = bf16_product<W>(tiles, 2, x.view, w.view, {0, n});
          INFO("tiles " << tiles << ", n " << n << ", k " << k << ", o " << o);
          CHECK(near_reference<float, W, fp8_activation>(x.view, w.view,
                                                         matrix_view<const float>(y.data(), n, o)));
        }
}

TEMPLATE_TEST_CASE(
    "both ways of bf16 products have the same bits alone, in any batch or group, with any threads",
    "[stored_linear]", fp8_weight, mxfp4, mxfp4_ocp) {
  using W = TestType;
  const std::int64_t rows = 212;
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{65, 75}, {300, 37}, {2209, 75}, {70, 1030}};
  for (const bool tiles : bf16_ways<W>())
    for (const auto& [k, o] : sizes) {
      const stored<fp8_activation> x(rows, k, 1, 4);
      const stored<W> w(o, k, 0, 5, 100);
      const auto all = bf16_product<W>(tiles, 1, x.view, w.view, {0, rows});
      for (const int threads : {1, 2, 4}) {
        INFO("tiles " << tiles << ", k " << k << ", o " << o << ", threads " << threads);
        for (const std::int64_t n : {1, 2, 3, 16, 17, 33, 193})
          for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, rows - n}) {
            const auto some = bf16_product<W>(tiles, threads, x.view.rows(first, n), w.view, {0, n});
            INFO("rows " << n << " from " << first);
            CHECK(same_bits(some.data(), all.data() + first * o, n * o));
          }
        CHECK(bf16_product<W>(tiles, threads, x.view, w.view, {0, 0, 1, 8, 8, 24, 41, 210, rows}) == all);
        for (const std::int64_t columns : {1, 17}) {
          const auto some = bf16_product<W>(tiles, threads, x.view, w.view.rows(19, columns), {0, rows});
          bool same = true;
          for (std::int64_t t = 0; t < rows; ++t)
            same = same && same_bits(some.data() + t * columns, all.data() + t * o + 19, columns);
          CHECK(same);
        }
      }
    }
}

TEMPLATE_TEST_CASE("both ways of bf16 products are right for NaN, zeros and unusual scales, in any batch",
                   "[stored_linear]", fp8_weight, mxfp4, mxfp4_ocp) {
  using W = TestType;
  using X = fp8_activation;
  const std::int64_t n = 37, o = 275, k = 300;
  stored<X> x(n, k, 0, 3);
  stored<W> w(o, k, 0, 2);
  const auto scale = [&](auto& m, std::int64_t row, std::int64_t block, int bits) {
    using F = typename std::decay_t<decltype(m.view)>::format;
    const std::int64_t i = row / F::block_rows * F::scale_columns(k) + block;
    m.scales[static_cast<std::size_t>(i)] = e8m0::from_bits(static_cast<std::uint8_t>(bits));
  };
  // The last scales that bf16 takes, the first that it does not, the ends of the range, and NaN.
  const int some[] = {79, 78, 175, 176, 0, 254, 255};
  for (int i = 0; i < 7; ++i) {
    scale(x, 2 + 5 * i, i % 3, some[i]);
    if (W::block_rows == 1) scale(w, 3 + 20 * i, i % W::scale_columns(k), some[i]);
  }
  if (W::block_rows > 1) scale(w, 0, 0, 79), scale(w, 128, 1, 78), scale(w, 256, 2, 255);
  for (const std::int64_t c : {0, 131, 299}) {  // NaN codes, and rows of zeros
    x.codes[static_cast<std::size_t>((4 + c % 7) * k + c)] = c % 2 ? 0xff : 0x7f;
    if (!W::packed) w.codes[static_cast<std::size_t>((40 + c % 7) * k + c)] = c % 2 ? 0x7f : 0xff;
  }
  const std::int64_t row_bytes = W::row_bytes(k);
  std::fill_n(x.codes.begin() + 20 * k, k, std::uint8_t{0});
  std::fill_n(w.codes.begin() + 60 * row_bytes, row_bytes, std::uint8_t{0});
  if (W::block_rows == 1)
    for (std::int64_t b = 0; b < W::scale_columns(k); ++b) scale(w, 60, b, 0);

  std::vector<float> want(static_cast<std::size_t>(n * o));
  linear<float, space::host, W, X>::forward(exec::reference{}, {x.view, w.view},
                                            {matrix_view<float>(want.data(), n, o)});
  const auto dx = decoded<double, X>(x.view), dw = decoded<double, W>(w.view);
  for (const bool tiles : bf16_ways<W>()) {
    const auto all = bf16_product<W>(tiles, 2, x.view, w.view, {0, n});
    for (std::int64_t t = 0; t < n; ++t) {
      const auto one = bf16_product<W>(tiles, 1, x.view.rows(t, 1), w.view, {0, 1});
      INFO("tiles " << tiles << ", row " << t);
      check_row(t, one, all, want, dx, dw);
    }
  }
}

#endif

TEMPLATE_TEST_CASE("the smallest scale is 2^-127 in products, not zero", "[stored_linear]", fp8_weight,
                   mxfp4) {
  using W = TestType;
  const std::uint8_t code = W::packed ? 0x02 : 0x38;  // 1
  const e8m0 scale = e8m0::from_bits(0);
  const float x[] = {1, 0x1p20f}, want[] = {0x1p-127f, 0x1p-107f};
  float y[2];
  linear<float, space::host, W>::forward(exec::cpu(1),
                                         {matrix_view<const float>(x, 2, 1), {&code, &scale, 1, 1}},
                                         {matrix_view<float>(y, 2, 1)});
  CHECK(same_bits(y, want, 2));
}

TEMPLATE_TEST_CASE("every instruction set quantises, and back, with the bits of the reference",
                   "[stored_linear]", fp8_activation, fp8_kv, mxfp4, mxfp4_ocp, fp8_weight) {
  using F = TestType;
  const std::int64_t rows = 131, columns = 416;
  std::vector<float> x(static_cast<std::size_t>(rows * columns));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      float& v = x[static_cast<std::size_t>(r * columns + c)];
      const int size = static_cast<int>((r * 13 + c / 32) % 40) - 20;
      v = std::ldexp(normal(random), r % 3 == 0 ? size : r % 3 == 1 ? 6 * size : 0);
      if (r % 4 == 1) v = std::ldexp(std::round(v * 16), -4);  // ties
      if (r % 8 == 3) v = std::ldexp(1.f + 0.25f * static_cast<float>(c % 8), static_cast<int>(c % 30) - 20);
      if (r % 16 == 7) v = c % 2 ? -0.f : 0.f;
      if (r == 30) v = std::ldexp(v, -130);
      if (r == 31 && c == 70) v = std::numeric_limits<float>::infinity();
      if (r == 32 && c == 170) v = -std::numeric_limits<float>::quiet_NaN();
      if (r == 33) v = c % 5 == 0 ? std::numeric_limits<float>::max() : v;
    }
  for (const std::int64_t width : {columns, std::int64_t{410}, std::int64_t{16}, std::int64_t{7}}) {
    matrix_view<const float> in(x.data(), rows, width);
    in.stride[0] = columns;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * F::row_bytes(width))), want_codes = codes;
    std::vector<e8m0> scales(static_cast<std::size_t>(F::scale_rows(rows) * F::scale_columns(width)));
    std::vector<e8m0> want_scales = scales;
    const block_scaled_matrix<F> got(codes.data(), scales.data(), rows, width);
    const block_scaled_matrix<F> want(want_codes.data(), want_scales.data(), rows, width);
    quantise<F, float>::forward(exec::reference{}, {in}, {want});
    for (const auto set : every_set) {
      if (!detail::supported(set)) continue;
      const auto kernels = detail::quantise_kernels_for<F>(set);
      for (std::int64_t r = 0; r < rows; r += F::block_rows)
        detail::quantise_blocks(kernels, in, got, r, std::min<std::int64_t>(rows, r + F::block_rows));
      INFO("width " << width << ", instruction set " << static_cast<int>(set));
      CHECK(codes == want_codes);
      CHECK(scales == want_scales);
      if constexpr (F::block_rows == 1) {
        std::vector<float> back(x), want_back(x);
        matrix_view<float> b(back.data(), rows, width), wb(want_back.data(), rows, width);
        b.stride[0] = wb.stride[0] = columns;
        round_trip<F, float>::forward(exec::reference{}, {}, {wb});
        for (std::int64_t r = 0; r < rows; ++r) detail::round_trip_blocks(kernels, b, r);
        bool same = true;
        for (std::size_t i = 0; i < back.size(); ++i)
          same = same &&
                 (std::isnan(want_back[i]) ? std::isnan(back[i]) : same_bits(&back[i], &want_back[i], 1));
        CHECK(same);
      }
    }
    quantise<F, float>::forward(exec::cpu(2), {in}, {got});
    CHECK(codes == want_codes);
    std::vector<float> out(static_cast<std::size_t>(rows * width)), want_out = out;
    dequantise<F, float>::forward(exec::cpu(2), {got}, {matrix_view<float>(out.data(), rows, width)});
    dequantise<F, float>::forward(exec::reference{}, {got},
                                  {matrix_view<float>(want_out.data(), rows, width)});
    bool same = true;
    for (std::size_t i = 0; i < out.size(); ++i)
      same = same && (std::isnan(want_out[i]) ? std::isnan(out[i]) : same_bits(&out[i], &want_out[i], 1));
    CHECK(same);
  }
}
