// SPDX-License-Identifier: Apache-2.0
// Products of MXFP4 weights and FP8 inputs where there are AMX tiles: of few rows by integers, of more by
// tiles.
#include "support/catch.hpp"
#include <dsv4/ops/cpu/stored_dispatch.hpp>
#include <dsv4/ops/linear.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#if DSV4_X86_KERNELS

namespace {

using namespace dsv4;
using X = fp8_activation;

/// Weights [o, k] and inputs [n, k] that begin as zeros with scales of 1.
template <class W>
struct operands {
  std::int64_t n, o, k;
  std::vector<std::uint8_t> w, x;
  std::vector<e8m0> w_scales, x_scales;

  operands(std::int64_t n_, std::int64_t o_, std::int64_t k_)
      : n(n_),
        o(o_),
        k(k_),
        w(static_cast<std::size_t>(o * W::row_bytes(k))),
        x(static_cast<std::size_t>(n * k)),
        w_scales(static_cast<std::size_t>(o * W::scale_columns(k)), e8m0::from_bits(127)),
        x_scales(static_cast<std::size_t>(n * X::scale_columns(k)), e8m0::from_bits(127)) {}

  storage_matrix<const W> weights() const { return {w.data(), w_scales.data(), o, k}; }
  storage_matrix<const X> inputs() const { return {x.data(), x_scales.data(), n, k}; }
  /// y[rows, o] for rows [first, first + rows) of x, or nothing where there are no tiles.
  std::vector<float> product(std::int64_t first, std::int64_t rows, int threads) const {
    std::vector<float> y(static_cast<std::size_t>(rows * o));
    detail::bf16_gemm_nt<W, X>(exec::cpu(threads), inputs().rows(first, rows),
                               matrix_view<float>(y.data(), rows, o),
                               std::array{detail::bf16_problem<W>{0, rows, weights()}}, true);
    return y;
  }
  double exact(std::int64_t t, std::int64_t j) const {  // of few enough columns
    double sum = 0;
    for (std::int64_t c = 0; c < k; ++c) sum += to_double(inputs()(t, c)) * to_double(weights()(j, c));
    return sum;
  }
};

template <class W>
bool tiles() {
  const bool has = detail::bf16_products<float, W, X>() && detail::amx::available();
  if (!has) WARN("not tested: products on AMX tiles, which this machine or its system lacks");
  return has;
}

/// Whether every row alone and in some batches has the bits that it has among all.
template <class W>
bool same_in_every_batch(const operands<W>& of) {
  const std::vector<float> all = of.product(0, of.n, 2);
  bool same = true;
  for (const std::int64_t rows : {1, 2, 3, 5, 16, 17, 40})
    for (std::int64_t first = 0; first + rows <= of.n; first += rows > 2 ? 37 : 1) {
      const std::vector<float> some = of.product(first, rows, first % 2 ? 1 : 2);
      same = same && std::memcmp(some.data(), all.data() + first * of.o, some.size() * sizeof(float)) == 0;
    }
  return same;
}

}  // namespace

TEMPLATE_TEST_CASE("every code of MXFP4 times every code of FP8 is exact", "[stored_mxfp4]", mxfp4,
                   mxfp4_ocp) {
  using W = TestType;
  if (!tiles<W>()) return;
  operands<W> of(256, 16, 130);
  for (std::int64_t t = 0; t < of.n; ++t)
    of.x[static_cast<std::size_t>(t * of.k + t * 7 % of.k)] = std::uint8_t(t);
  for (std::int64_t j = 0; j < of.o; ++j)
    for (std::int64_t c = 0; c < of.k; ++c)
      W::set(of.w.data() + j * W::row_bytes(of.k), c, e2m1::from_bits(static_cast<std::uint8_t>(j)));
  for (const std::int64_t rows : {1, 2, 3, 256})
    for (std::int64_t first = 0; first + rows <= of.n; first += rows) {
      const std::vector<float> y = of.product(first, rows, 1);
      bool right = true;
      for (std::int64_t t = 0; t < rows; ++t)
        for (std::int64_t j = 0; j < of.o; ++j) {
          const float got = y[static_cast<std::size_t>(t * of.o + j)];
          const double want = of.exact(first + t, j);
          right = right && (std::isnan(want) ? std::isnan(got) : double(got) == want);
        }
      INFO("rows " << rows << " from " << first);
      CHECK(right);
    }
}

TEMPLATE_TEST_CASE("a block's sum is rounded once, whatever is in it", "[stored_mxfp4]", mxfp4, mxfp4_ocp) {
  using W = TestType;
  if (!tiles<W>()) return;
  std::mt19937 random(1);
  for (const std::int64_t k : {32, 31, 5}) {
    operands<W> of(200, 37, k);
    for (auto& c : of.w) c = static_cast<std::uint8_t>(random());
    for (std::int64_t t = 0; t < of.n; ++t) {
      for (std::int64_t c = 0; c < k; ++c) {
        const unsigned bits = static_cast<unsigned>(random());
        // Any numbers; the largest, all, or with one that needs the last of a sum's bits; small ones.
        const unsigned code = t % 4 == 0   ? bits & 0xff
                              : t % 4 == 1 ? 0x7e
                              : t % 4 == 2 ? (c == t % k ? 1 : 0x7e)
                                           : bits & 0x8f;
        of.x[static_cast<std::size_t>(t * k + c)] =
            static_cast<std::uint8_t>((code & 0x7f) == 0x7f ? 0x7e : code);
      }
      of.x_scales[static_cast<std::size_t>(t)] = e8m0::from_bits(static_cast<std::uint8_t>(79 + t % 97));
    }
    std::fill_n(of.w.begin(), W::row_bytes(k), std::uint8_t{0x77});  // 6, the largest
    for (std::int64_t j = 0; j < of.o; ++j)  // the last scales that are not computed in float
      of.w_scales[static_cast<std::size_t>(j)] = e8m0::from_bits(j % 3 == 0 ? 79 : j % 3 == 1 ? 127 : 175);
    const std::vector<float> y = of.product(0, of.n, 2);
    std::int64_t wrong = 0;
    for (std::int64_t t = 0; t < of.n; ++t)
      for (std::int64_t j = 0; j < of.o; ++j)  // doubles hold the sum: 2^27 times a power of two
        wrong += y[static_cast<std::size_t>(t * of.o + j)] != static_cast<float>(of.exact(t, j));
    INFO("k " << k);
    CHECK(wrong == 0);
    CHECK(same_in_every_batch(of));
  }
}

// Of split itself: tiles may add more precisely than they are specified to, and then products do not tell.
TEST_CASE("what a block of FP8 is split into has exact sums with MXFP4", "[stored_mxfp4]") {
  if (!tiles<mxfp4>()) return;
  std::mt19937 random(3);
  std::int64_t wrong = 0, split = 0;
  for (std::int64_t t = 0; t < 4000; ++t) {
    const std::int64_t k = t % 3 == 0 ? 31 : 32;
    std::uint8_t own[32], parts[2][32];
    for (std::int64_t c = 0; c < k; ++c) {
      const auto any = static_cast<std::uint8_t>(random() % 0x7f | (random() & 0x80));
      own[c] = t % 2 ? any : c < t / 2 % 33 ? 0x7e : static_cast<std::uint8_t>(1 + t / 66 % 16);
    }
    bool needed = false;
    const bool is_split = detail::vnni_mxfp4::split(own, k, parts[0], parts[1], &needed);
    bool right = is_split == needed;
    for (const auto& part : parts) {
      std::int64_t sum = 0,
                   bits = 0;  // the largest that weights of 6 give, as integers; bits of all products
      for (std::int64_t c = 0; c < k; ++c) {
        const auto v = static_cast<std::int64_t>(std::abs(to_double(e4m3::from_bits(part[c]))) * 512);
        sum += 12 * v, bits |= v;
      }
      right = right && sum <= (std::int64_t{1} << 24) * std::max<std::int64_t>(bits & -bits, 1);
    }
    for (std::int64_t c = 0; c < k; ++c)
      right = right && (parts[0][c] | parts[1][c]) == own[c] && (parts[0][c] == 0 || parts[1][c] == 0) &&
              (needed || parts[1][c] == 0);
    wrong += !right, split += is_split;
  }
  CHECK(wrong == 0);
  CHECK(split > 0);
}

TEMPLATE_TEST_CASE("a row by MXFP4 has the same bits in every batch, however far its numbers lie apart",
                   "[stored_mxfp4]", mxfp4, mxfp4_ocp) {
  using W = TestType;
  if (!tiles<W>()) return;
  for (const std::int64_t k : {1055, 2048}) {
    operands<W> of(200, 83, k);
    std::mt19937 random(2);
    for (auto& c : of.w) c = static_cast<std::uint8_t>(random());
    for (std::int64_t t = 0; t < of.n; ++t)
      for (std::int64_t c = 0; c < k; ++c) {
        const unsigned bits = static_cast<unsigned>(random());
        // In one row of four any numbers, in others only those that need no splitting, but for a few blocks.
        const bool any = t % 4 == 0 || (t % 4 == 1 && c / 32 % 9 == t % 9);
        const unsigned code = any ? bits & 0xff : (bits & 0xbf) | 0x40;
        of.x[static_cast<std::size_t>(t * k + c)] =
            static_cast<std::uint8_t>((code & 0x7f) == 0x7f ? 0 : code);
      }
    for (auto& s : of.w_scales) s = e8m0::from_bits(static_cast<std::uint8_t>(107 + random() % 40));
    for (auto& s : of.x_scales) s = e8m0::from_bits(static_cast<std::uint8_t>(107 + random() % 40));
    of.w_scales[5] = e8m0::from_bits(0);  // a block that is unusual
    INFO("k " << k);
    CHECK(same_in_every_batch(of));
  }
}

#endif
