// SPDX-License-Identifier: Apache-2.0
// Scales and elements by hand from the published rules, the cpu's bits against the reference's, and what may
// be lost.
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/ops/cpu/stored_dispatch.hpp>
#include <dsv4/ops/quantise.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity(),
                no_number = std::numeric_limits<float>::quiet_NaN();

/// A matrix in format F, with a guard byte and a guard scale after its end.
template <class F>
struct stored {
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;
  std::int64_t rows, columns;

  stored(std::int64_t rows_, std::int64_t columns_)
      : codes(static_cast<std::size_t>(rows_ * F::row_bytes(columns_)) + 1, 0xA5),
        scales(static_cast<std::size_t>(F::scale_rows(rows_) * F::scale_columns(columns_)) + 1,
               e8m0::from_bits(0xA5)),
        rows(rows_),
        columns(columns_) {}
  block_scaled_matrix<F> view() { return {codes.data(), scales.data(), rows, columns}; }
  bool guarded() const { return codes.back() == 0xA5 && scales.back().bits == 0xA5; }
  bool operator==(const stored& other) const { return codes == other.codes && scales == other.scales; }
};

/// Bit for bit, but any NaN equals any other.
template <class T>
bool same_values(const buffer<T>& a, const buffer<T>& b) {
  if (a.size() != b.size()) return false;
  for (std::int64_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

/// Values of every kind that a row can have: a magnitude per row, and in some rows one per element, down to
/// subnormals; zeros of both signs; and, where asked for, NaN and infinity.
template <class T>
buffer<T> mixed(std::int64_t rows, std::int64_t columns, bool not_finite) {
  auto x = random<T>(rows * columns, static_cast<std::uint64_t>(rows * 1000 + columns));
  const auto r = random<double>(rows * columns, 9);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < columns; ++c) {
      T& v = x[t * columns + c];
      const double exponent = t % 3 == 0 ? 3 * r[t] : t % 3 == 1 ? 120 * r[t] : 145 * r[t * columns + c] - 20;
      v = T(float(std::ldexp(double(v), static_cast<int>(exponent))));
      if (t % 5 == 3) v = T(c % 2 == 0 ? 0.0f : -0.0f);
      if (not_finite && t % 7 == 6 && c == columns / 2) v = T(t % 2 == 0 ? no_number : -infinite);
    }
  return x;
}

/// Quantises one row and gives it back.
template <class F>
std::vector<float> stored_values(std::vector<float> x) {
  round_trip<F, float>::forward(exec::reference{}, {}, {{x.data(), 1, static_cast<std::int64_t>(x.size())}});
  return x;
}

/// Calls f<T>() for float and double.
template <class Body>
void for_scalars(const Body& f) {
  f.template operator()<float>();
  f.template operator()<double>();
}

/// The scale of the released kernels, by their bit operations on floats (specification of the training side,
/// 8.3): one more than the exponent, unless the quotient is a power of two.
int released_exponent(float amax, float largest) {
  const auto bits = __builtin_bit_cast(std::uint32_t, amax / largest);
  return static_cast<int>((bits - 1) >> 23) + 1 - 127;
}

}  // namespace

#define DSV4_FORMATS mxfp4, mxfp4_ocp, fp8_weight, fp8_activation, fp8_kv
#define DSV4_ROW_FORMATS mxfp4, mxfp4_ocp, fp8_activation, fp8_kv

TEMPLATE_TEST_CASE("quantise: scales are powers of two, by the ceiling rule", "", mxfp4, fp8_weight,
                   fp8_activation, fp8_kv) {
  const double largest = double(TestType::element::max());
  CHECK(double(TestType::scale(largest)) == 1);
  CHECK(double(TestType::scale(1.0000001 * largest)) == 2);
  CHECK(double(TestType::scale(0.25 * largest)) == 0.25);
  CHECK(double(TestType::scale(0.26 * largest)) == 0.5);
  // At and beside every power of two times the largest element, and between.
  for (int e = -12; e <= 110; ++e)
    for (const float mantissa : {1.0f, 1.25f, 1.5f, 1.625f, 1.75f, 1.9f}) {
      const float middle = std::ldexp(mantissa, e);
      for (const float amax : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, infinite)}) {
        INFO("amax " << amax);
        CHECK(TestType::scale(double(amax)).exponent() == released_exponent(amax, TestType::element::max()));
      }
    }
}

TEST_CASE("quantise: OCP's scale is the floor of log2, less the exponent of 6") {
  for (const auto& [amax, exponent] :
       {std::pair(1.0, -2), {1.99, -2}, {2.0, -1}, {4.0, 0}, {6.0, 0}, {7.99, 0}, {8.0, 1}, {0x1p-120, -122}})
    CHECK(mxfp4_ocp::scale(amax).exponent() == exponent);
}

TEST_CASE("quantise: where the two rules differ (docs/numeric-types.md)") {
  // The largest value of a block, what is stored of it by the ceiling rule, and by OCP's.
  for (const auto& [amax, ceil, floor] :
       {std::array{6.1f, 6.0f, 6.0f}, {7, 8, 6}, {7.9f, 8, 6}, {12.1f, 12, 12}, {5, 4, 4}}) {
    INFO("amax " << amax);
    CHECK(stored_values<mxfp4>({amax, 0.1f})[0] == ceil);
    CHECK(stored_values<mxfp4_ocp>({amax, 0.1f})[0] == floor);
  }
  // They differ exactly where the mantissa of amax is above that of 6, 1.5.
  for (int e = -9; e < 9; ++e)
    for (const float mantissa : {1.0f, 1.49f, 1.5f, std::nextafter(1.5f, 2.0f), 1.99f}) {
      const double amax = std::ldexp(mantissa, e);
      CHECK(mxfp4::scale(amax).bits - mxfp4_ocp::scale(amax).bits == (mantissa > 1.5f ? 1 : 0));
    }
}

TEST_CASE("quantise: what scales are computed from at least, and blocks that are no numbers") {
  // 1e-4 / 448 lies between 2^-23 and 2^-22.
  for (const double amax : {0.0, 1e-30, 1e-5, 1e-4}) {
    CHECK(fp8_activation::scale(amax).exponent() == -22);
    CHECK(fp8_kv::scale(amax).exponent() == -22);
  }
  CHECK(fp8_kv::scale(448 * 0x1p-22).exponent() == -22);
  CHECK(fp8_kv::scale(449 * 0x1p-22).exponent() == -21);
  for (const double amax : {0.0, 0x1p-149, 6 * 0x1p-126}) {
    CHECK(mxfp4::scale(amax).exponent() == -126);
    CHECK(mxfp4_ocp::scale(amax).exponent() == -126);
    CHECK(fp8_weight::scale(amax).exponent() == -126);
  }
  CHECK(mxfp4::scale(6.1 * 0x1p-126).exponent() == -125);
  for (const double amax : {double(infinite), double(no_number)}) {
    CHECK(mxfp4::scale(amax).is_nan());
    CHECK(fp8_weight::scale(amax).is_nan());
  }
  // One of them makes its own block NaN and no other.
  for (const float bad : {infinite, -infinite, no_number}) {
    std::vector<float> x(96, 1);
    x[40] = bad;
    const auto y = stored_values<mxfp4>(x);
    for (std::size_t i = 0; i < 96; ++i) CHECK(std::isnan(y[i]) == (i >= 32 && i < 64));
    const auto z = stored_values<fp8_kv>(x);
    for (std::size_t i = 0; i < 96; ++i) CHECK(std::isnan(z[i]) == (i < 64));
  }
}

TEST_CASE("quantise: an MXFP4 row of two blocks by hand, to the byte") {
  // amax 6: scale 1. Ties go to the even code: 0.25 to 0, 0.75 to 1, 1.25 to 1, 1.75 to 2, 2.5 to 2, 3.5 to
  // 4, 5 to 4. The second block has amax 0.7: 0.7 / 6 lies between 2^-4 and 2^-3.
  std::vector<float> x(35, 0.0f);
  const float first[] = {6, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, -0.25f, -0.75f, -6, -5, 0.26f, -2.51f};
  std::copy(std::begin(first), std::end(first), x.begin());
  x[32] = 0.7f, x[33] = -0.125f, x[34] = 0.06f;
  const std::uint8_t want[] = {0x07, 0x22, 0x44, 0x66, 0xA8, 0xEF, 0xD1};
  stored<mxfp4> q(1, 35);
  quantise<mxfp4, float>::forward(exec::reference{}, {{x.data(), 1, 35}}, {q.view()});
  for (std::size_t i = 0; i < std::size(want); ++i) CHECK(int(q.codes[i]) == int(want[i]));
  for (std::size_t i = std::size(want); i < 16; ++i) CHECK(int(q.codes[i]) == 0);
  // 0.7 / 2^-3 = 5.6 to 6, 1 stays, 0.48 to 0.5.
  CHECK(int(q.codes[16]) == 0xA7);
  CHECK(int(q.codes[17] & 0xF) == 1);
  CHECK(q.scales[0].bits == 127);
  CHECK(q.scales[1].bits == 124);
  CHECK(q.guarded());
  buffer<float> y(35);
  dequantise<mxfp4, float>::forward(exec::reference{}, {q.view()}, {y.as(1, 35)});
  const float back[] = {6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -6, -4, 0.5f, -3};
  for (int i = 0; i < 14; ++i) CHECK(y[i] == back[i]);
  CHECK(std::signbit(y[8]));
  CHECK(y[32] == 0.75f);
  CHECK(y[33] == -0.125f);
  CHECK(y[34] == 0.0625f);
}

TEST_CASE("quantise: an E4M3 row by hand, to the byte") {
  // amax 448: scale 1. The ties of the published table; -0 keeps its sign.
  const float x[] = {448,     17,       18,       19,       272,      0.3f,  1 / 3.0f, 1.0625f,
                     1.1875f, 0x1p-10f, 0x3p-10f, 0x5p-10f, -0x1p-9f, -0.0f, -447};
  const std::uint8_t want[] = {0x7E, 0x58, 0x59, 0x5A, 0x78, 0x2A, 0x2B, 0x38,
                               0x3A, 0x00, 0x02, 0x02, 0x81, 0x80, 0xFE};
  stored<fp8_kv> q(1, 15);
  quantise<fp8_kv, float>::forward(exec::reference{}, {{x, 1, 15}}, {q.view()});
  for (std::size_t i = 0; i < 15; ++i) CHECK(int(q.codes[i]) == int(want[i]));
  CHECK(q.scales[0].bits == 127);
  CHECK(q.guarded());
}

TEST_CASE("quantise: FP8 weights have one scale per 128 by 128, those at the ends are smaller") {
  // Rows 128 and 129, and column 128, are in blocks of their own.
  std::vector<float> x(130 * 129, 0.0f);
  const auto at = [&](int r, int c) -> float& { return x[static_cast<std::size_t>(r * 129 + c)]; };
  at(0, 0) = 448, at(127, 127) = 17;        // scale 1
  at(5, 128) = -449, at(6, 128) = 0x1p-8f;  // scale 2
  at(129, 0) = 0.5f, at(128, 127) = -0.3f;  // 0.5 / 448 lies between 2^-10 and 2^-9
  stored<fp8_weight> q(130, 129);
  quantise<fp8_weight, float>::forward(exec::reference{}, {{x.data(), 130, 129}}, {q.view()});
  CHECK(q.scales[0].exponent() == 0);
  CHECK(q.scales[1].exponent() == 1);
  CHECK(q.scales[2].exponent() == -9);
  CHECK(q.scales[3].exponent() == -126);
  CHECK(q.guarded());
  const auto view = q.view();
  CHECK(view(0, 0) == 448);
  CHECK(view(127, 127) == 16);
  CHECK(view(5, 128) == -448);
  CHECK(view(6, 128) == 0x1p-8f);
  CHECK(view(129, 0) == 0.5f);
  CHECK(view(128, 127) == -0.3125f);  // 153.6 to 160, times 2^-9
  CHECK(view(128, 128) == 0);
}

TEST_CASE("quantise: a key-value entry keeps its rotated dims, an index key goes through Hadamard first") {
  // Seven groups of 64 with a scale each, then 64 dims that are not touched (docs/numeric-types.md).
  std::vector<float> entry(512, 0.3f);
  for (int g = 0; g < 7; ++g) entry[static_cast<std::size_t>(64 * g)] = std::ldexp(448.0f, g);
  matrix_view<float> row(entry.data(), 1, 512);
  round_trip<fp8_kv, float>::forward(exec::cpu(1), {}, {row.columns(0, 448)});
  for (int g = 0; g < 7; ++g) {
    CHECK(row(0, 64 * g) == std::ldexp(448.0f, g));
    // 0.3 / 2^g: 1.2 of a power of two goes to 1.25; from g = 5 on it is subnormal, 4.8 steps to 5, 2.4 to 2.
    CHECK(row(0, 64 * g + 63) == (g < 6 ? 0.3125f : 0.25f));
  }
  for (int i = 448; i < 512; ++i) CHECK(row(0, i) == 0.3f);
  // (1, 2, 3, 4) becomes (5, -1, -2, 0); scale 1; 5 goes to 4.
  float key[] = {1, 2, 3, 4};
  hadamard<float>::forward(exec::cpu(1), {}, {{key, 1, 4}});
  round_trip<mxfp4, float>::forward(exec::cpu(1), {}, {{key, 1, 4}});
  const float want[] = {4, -1, -2, 0};
  for (int i = 0; i < 4; ++i) CHECK(key[i] == want[i]);
}

TEST_CASE(
    "quantised with one scale, stored with another: the error is at most half a step of the stored scale") {
  // MXFP4: amax 6 has scale 1; 5 lies between 4 and 6, and goes to the even code.
  float x[] = {6, 5, -2.5f, 0.25f, 0.75f, -0.2f, 1.25f, 0};
  round_trip<mxfp4, float>::forward(exec::reference{}, {}, {{x, 1, 8}});
  const float want[] = {6, 4, -2, 0, 1, 0, 1, 0};
  for (int i = 0; i < 8; ++i) CHECK(x[i] == want[i]);
  auto y = random<float>(64 * 64, 1, 300);
  const auto before = copy(y);
  round_trip<fp8_kv, float>::forward(exec::cpu(2), {}, {y.as(64, 64)});
  for (std::int64_t t = 0; t < 64; ++t) {
    double amax = 0;
    for (int i = 0; i < 64; ++i) amax = std::max(amax, std::abs(double(before[t * 64 + i])));
    const double s = double(fp8_kv::scale(amax));
    CHECK(s == std::exp2(std::ceil(std::log2(amax / 448))));
    for (int i = 0; i < 64; ++i) {
      const double v = std::abs(double(before[t * 64 + i])) / s;
      const double step = v < 0x1p-6 ? 0x1p-9 : std::ldexp(1.0, std::ilogb(v) - 3);
      CHECK(std::abs(double(y[t * 64 + i]) - double(before[t * 64 + i])) <= s * step / 2);
    }
  }
}

TEMPLATE_TEST_CASE("round_trip: twice is once; zeros and tiny rows stay finite", "", DSV4_ROW_FORMATS) {
  for_scalars([]<class T>() {
    for (const double size : {0.0, 1e-30, 1.0, 1e30}) {
      auto x = random<T>(3 * 70, 5, size);
      round_trip<TestType, T>::forward(exec::cpu(1), {}, {x.as(3, 70)});
      const auto once = copy(x);
      round_trip<TestType, T>::forward(exec::cpu(1), {}, {x.as(3, 70)});
      CHECK(same(x, once));
      for (T v : x) CHECK(std::isfinite(v));
    }
  });
}

TEMPLATE_TEST_CASE(
    "quantise, dequantise, round_trip: cpu has the reference's bits; there and back is one trip", "",
    DSV4_FORMATS) {
  using F = TestType;
  for_scalars([]<class T>() {
    for (const bool not_finite : {false, true})
      for (const std::int64_t rows : {0, 1, 7, 129})
        for (const std::int64_t columns : {1, 15, 16, 17, 31, 32, 33, 48, 64, 70, 128, 129, 130, 257}) {
          INFO(sizeof(T) << " bytes, " << rows << " x " << columns << (not_finite ? ", not finite" : ""));
          const auto x = mixed<T>(rows, columns, not_finite);
          stored<F> a(rows, columns), b(rows, columns);
          quantise<F, T>::forward(exec::reference{}, {x.as(rows, columns)}, {a.view()});
          quantise<F, T>::forward(exec::cpu(2), {x.as(rows, columns)}, {b.view()});
          CHECK(a == b);
          CHECK(a.guarded());
          auto y = poison<T>(rows * columns), z = poison<T>(rows * columns);
          dequantise<F, T>::forward(exec::reference{}, {a.view()}, {y.as(rows, columns)});
          dequantise<F, T>::forward(exec::cpu(2), {a.view()}, {z.as(rows, columns)});
          CHECK(same_values(y, z));
          if constexpr (F::block_rows == 1) {
            auto once = copy(x), twice = copy(x);
            round_trip<F, T>::forward(exec::reference{}, {}, {once.as(rows, columns)});
            round_trip<F, T>::forward(exec::cpu(2), {}, {twice.as(rows, columns)});
            CHECK(same_values(once, y));
            CHECK(same_values(twice, y));
          }
        }
  });
}

#if DSV4_X86_KERNELS
TEMPLATE_TEST_CASE("quantise: the kernels of every instruction set have the reference's bits", "",
                   DSV4_FORMATS) {
  using F = TestType;
  using detail::instruction_set;
  for (const auto set : {instruction_set::portable, instruction_set::avx2, instruction_set::avx512}) {
    if (!detail::supported(set)) continue;
    const auto kernels = detail::quantise_kernels_for<F>(set);
    for (const std::int64_t columns : {16, 32, 48, 64, 128, 130}) {
      const std::int64_t rows = 260;
      INFO("set " << int(set) << ", columns " << columns);
      const auto x = mixed<float>(rows, columns, true);
      const auto view = x.as(rows, columns);
      stored<F> a(rows, columns), b(rows, columns);
      for (std::int64_t r = 0; r < rows; r += F::block_rows) {
        const std::int64_t end = std::min<std::int64_t>(rows, r + F::block_rows);
        detail::quantise_rows(view, a.view(), r, end);
        detail::quantise_blocks(kernels, view, b.view(), r, end);
      }
      CHECK(a == b);
      if constexpr (F::block_rows == 1) {
        auto y = copy(x), z = copy(x);
        for (std::int64_t t = 0; t < rows; ++t) {
          detail::round_trip_row<F>(y.as(rows, columns), t);
          detail::round_trip_blocks<F>(kernels, z.as(rows, columns), t);
        }
        CHECK(same_values(y, z));
      }
    }
  }
}
#endif

TEST_CASE("dequantise: a part of the rows, also from within a block of rows") {
  const auto x = mixed<float>(300, 130, false);
  stored<fp8_weight> q(300, 130);
  quantise<fp8_weight, float>::forward(exec::cpu(2), {x.as(300, 130)}, {q.view()});
  auto all = poison<float>(300 * 130);
  dequantise<fp8_weight, float>::forward(exec::cpu(2), {q.view()}, {all.as(300, 130)});
  for (const std::int64_t begin : {0, 1, 127, 128, 200}) {
    auto some = poison<float>(100 * 130);
    dequantise<fp8_weight, float>::forward(exec::cpu(2), {q.view().rows(begin, 100)}, {some.as(100, 130)});
    CHECK(std::memcmp(some.data(), all.data() + begin * 130, 100 * 130 * sizeof(float)) == 0);
  }
}

TEST_CASE("MXFP4 weights fit FP8 tiles without loss while scales differ by up to 2^14") {
  // Specification of the training side, 8.1: all FP4 magnitudes times 2^k are E4M3 numbers for -8 <= k <= 6,
  // and the tile's scale is 2^-6 of the largest FP4 scale.
  for (const int spread : {0, 11, 14, 15}) {
    std::vector<std::uint8_t> codes(128 * 64);
    std::vector<e8m0> scales(128 * 4);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 37);
    for (std::size_t i = 0; i < scales.size(); ++i)
      scales[i] =
          e8m0::from_bits(static_cast<std::uint8_t>(120 - (spread == 0 ? 0 : i % (1 + std::size_t(spread)))));
    codes[0] = 0x77;  // 6 at the largest scale
    const block_scaled_matrix<const mxfp4> fp4(codes.data(), scales.data(), 128, 128);
    buffer<float> x(128 * 128), y(128 * 128);
    dequantise<mxfp4, float>::forward(exec::cpu(2), {fp4}, {x.as(128, 128)});
    stored<fp8_weight> fp8(128, 128);
    quantise<fp8_weight, float>::forward(exec::cpu(2), {x.as(128, 128)}, {fp8.view()});
    CHECK(fp8.scales[0].bits == 120 - 6);
    dequantise<fp8_weight, float>::forward(exec::cpu(2), {fp8.view()}, {y.as(128, 128)});
    INFO("spread " << spread);
    CHECK(same(x, y) == (spread <= 14));
  }
}

TEST_CASE("round_trip: relative error on normal numbers, as published") {
  // Specification of the training side, 12: root mean square error over 2^20 samples of N(0, 1), relative.
  // The figures have four digits; two samples of this size differ by about 1 in sqrt(2^20), a thousandth.
  constexpr std::int64_t rows = 1024, columns = 1024, count = rows * columns;
  const auto u = random<double>(count, 11), v = random<double>(count, 12);
  buffer<float> x(count);
  for (std::int64_t i = 0; i < count; ++i)
    x[i] =
        float(std::sqrt(-2 * std::log((u[i] + 1) / 2 + 0x1p-25)) * std::cos(3.14159265358979323846 * v[i]));
  const auto error = [&]<class F>(F) {
    auto y = copy(x);
    round_trip<F, float>::forward(exec::cpu(2), {}, {y.as(rows, columns)});
    double lost = 0, all = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const double d = double(y[i]) - double(x[i]);
      lost += d * d, all += double(x[i]) * double(x[i]);
    }
    return std::sqrt(lost / all);
  };
  CHECK(std::abs(error(mxfp4{}) / 0.1153 - 1) < 0.002);
  CHECK(std::abs(error(mxfp4_ocp{}) / 0.1149 - 1) < 0.002);
  CHECK(std::abs(error(fp8_activation{}) / 0.0265 - 1) < 0.003);
}

TEST_CASE("round_to_bf16: ties to even, one rounding, and what is no number") {
  const auto stored = [](auto x) {
    using T = decltype(x);
    bf16 narrow;
    T wide;
    round_to_bf16<T, bf16>::forward(exec::reference{}, {{&x, 1}}, {{&narrow, 1}});
    round_to_bf16<T, T>::forward(exec::reference{}, {{&x, 1}}, {{&wide, 1}});
    CHECK((double(wide) == to_double(narrow) || (std::isnan(wide) && narrow.is_nan())));
    return to_double(narrow);
  };
  CHECK(stored(1.00390625f) == 1);         // a tie: 1 is even
  CHECK(stored(1.01171875f) == 1.015625);  // a tie: 1 + 2^-7 is odd
  CHECK(stored(1.00390625 + 0x1p-40) == 1.0078125);
  CHECK(stored(0x1p-140) == 0);
  CHECK(std::signbit(stored(-0.0f)));
  CHECK(stored(-3.4e38f) == -double(infinite));
  CHECK(std::isnan(stored(no_number)));
}

TEST_CASE("round_to_bf16: cpu has the reference's bits, in place too, for every number of threads") {
  for_scalars([]<class T>() {
    constexpr std::int64_t rows = 100, columns = 1003, count = rows * columns;
    auto x = mixed<T>(rows, columns, true);
    buffer<bf16> want(count), got(count);
    buffer<T> wide(count);
    round_to_bf16<T, bf16>::forward(exec::reference{}, {x.as(count)}, {want.as(count)});
    round_to_bf16<T, T>::forward(exec::reference{}, {x.as(count)}, {wide.as(count)});
    for (const int threads : {1, 3}) {
      round_to_bf16<T, bf16>::forward(exec::cpu(threads), {x.as(count)}, {got.as(count)});
      CHECK(std::equal(got.begin(), got.end(), want.begin()));
    }
    round_to_bf16<T, T>::forward(exec::cpu(2), {x.as(count)}, {x.as(count)});
    CHECK(same_values(x, wide));
  });
}

TEST_CASE("quantise: what does not fit is refused by name") {
  const exec::cpu p(1);
  const auto x = random<float>(4 * 32);
  stored<mxfp4> q(4, 32);
  CHECK_THROWS_WITH((quantise<mxfp4, float>::forward(p, {x.as(3, 32)}, {q.view()})),
                    contains("quantise") && contains("quantised rows") && contains("3") && contains("4"));
  CHECK_THROWS_WITH((quantise<mxfp4, float>::forward(p, {x.as(4, 31)}, {q.view()})),
                    contains("quantised columns"));
  buffer<float> y(4 * 32);
  CHECK_THROWS_WITH((dequantise<mxfp4, float>::forward(p, {q.view()}, {y.as(3, 32)})), contains("x rows"));
  CHECK_THROWS_WITH((dequantise<mxfp4, float>::forward(p, {q.view()}, {y.as(4, 31)})), contains("x columns"));
  // A part of a block of rows has no scale of its own.
  stored<fp8_weight> w(8, 32);
  CHECK_THROWS_WITH((quantise<fp8_weight, float>::forward(p, {x.as(4, 32)}, {w.view().rows(2, 4)})),
                    contains("first row within its block"));
  buffer<bf16> narrow(5);
  CHECK_THROWS_WITH((round_to_bf16<float, bf16>::forward(p, {x.as(4)}, {narrow.as(5)})),
                    contains("round_to_bf16") && contains("4") && contains("5"));
}
