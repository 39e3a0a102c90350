// SPDX-License-Identifier: Apache-2.0
// The lossless FP4 to FP8 recast, and its exact condition.
#include "support/catch.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/ops/recast.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

using namespace dsv4;

namespace {

struct fp4_matrix {
  fp4_matrix(std::int64_t rows, std::int64_t columns)
      : codes(static_cast<std::size_t>(rows * mxfp4::row_bytes(columns))),
        scales(static_cast<std::size_t>(rows * mxfp4::scale_columns(columns)), e8m0::from_bits(127)),
        view(codes.data(), scales.data(), rows, columns) {}
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;
  block_scaled_matrix<mxfp4> view;
};

struct fp8_matrix {
  fp8_matrix(std::int64_t rows, std::int64_t columns)
      : codes(static_cast<std::size_t>(rows * columns), 0x7F),  // NaN: what is not written shows up
        scales(static_cast<std::size_t>(fp8_weight::scale_rows(rows) * fp8_weight::scale_columns(columns)),
               e8m0::from_bits(255)),
        view(codes.data(), scales.data(), rows, columns) {}
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;
  block_scaled_matrix<fp8_weight> view;
};

/// Tiles that could not be recast; all others hold the exact values.
template <policy P>
std::vector<std::int64_t> check(const P& p, const fp4_matrix& in, recast_rule rule) {
  const std::int64_t rows = in.view.extent[0], columns = in.view.extent[1];
  fp8_matrix out(rows, columns);
  std::vector<std::int64_t> violations(static_cast<std::size_t>(fp8_weight::scale_rows(rows)), -1);
  recast<>::forward(p, {in.view, rule},
                    {out.view, {violations.data(), static_cast<std::int64_t>(violations.size())}});
  std::vector<std::int64_t> untouched(violations.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      if (out.view.row_scales(r)[c / 128].is_nan()) {
        if (r % 128 == 0 && c % 128 == 0) ++untouched[static_cast<std::size_t>(r / 128)];
        REQUIRE(out.codes[static_cast<std::size_t>(r * columns + c)] == 0x7F);
        continue;
      }
      // As doubles: the smallest values lie below float's range.
      const double exact = std::ldexp(static_cast<double>(mxfp4::get(in.view.row(r), c)),
                                      in.view.row_scales(r)[c / 32].bits - 127);
      const double recast_value = std::ldexp(static_cast<double>(e4m3::from_bits(out.view.row(r)[c])),
                                             out.view.row_scales(r)[c / 128].bits - 127);
      REQUIRE(exact == recast_value);
      REQUIRE(std::signbit(exact) == std::signbit(recast_value));
    }
  CHECK(untouched == violations);
  return violations;
}

std::uint64_t next(std::uint64_t& state) {
  return state = state * 6364136223846793005u + 1442695040888963407u;
}

}  // namespace

TEST_CASE("which powers of two every E2M1 magnitude survives as E4M3") {
  for (int k = -20; k <= 20; ++k) {
    bool all = true;
    for (std::uint8_t code = 0; code < 8; ++code) {
      const double value = std::ldexp(static_cast<double>(e2m1::from_bits(code)), k);
      all &= static_cast<double>(e4m3(value)) == value;
    }
    CHECK(all == (k >= -8 && k <= 6));
  }
}

TEST_CASE("lossless FP4 to FP8 is not unconditional: exact to a spread of 2^14, normal codes to 2^11") {
  // One row with all codes at two exponents, for every pair of exponents.
  for (int high = 0; high <= 254; high += high < 20 || high > 240 ? 1 : 13)
    for (int spread = 0; spread <= 18 && spread <= high; ++spread) {
      fp4_matrix m(1, 64);
      for (std::int64_t c = 0; c < 64; ++c)
        mxfp4::set(m.view.row(0), c, e2m1::from_bits(static_cast<std::uint8_t>(c % 16)));
      m.scales[0] = e8m0::from_bits(static_cast<std::uint8_t>(high));
      m.scales[1] = e8m0::from_bits(static_cast<std::uint8_t>(high - spread));
      INFO("exponents " << high << " and " << high - spread);
      CHECK(check(exec::reference{}, m, recast_rule::exact)[0] == (spread > 14));
      CHECK(check(exec::reference{}, m, recast_rule::normal)[0] == (spread > 11));
    }
}

TEST_CASE("blocks of zeros and NaN scales") {
  fp4_matrix m(1, 64);
  mxfp4::set(m.view.row(0), 0, e2m1(6.0f));
  mxfp4::set(m.view.row(0), 40, e2m1::from_bits(8));  // -0
  m.scales[0] = e8m0::from_bits(200);
  m.scales[1] = e8m0::from_bits(0);
  CHECK(check(exec::reference{}, m, recast_rule::exact)[0] == 0);  // the second block holds zeros only
  CHECK(check(exec::reference{}, m, recast_rule::normal)[0] == 1);
  m.scales[1] = e8m0::from_bits(255);
  CHECK(check(exec::reference{}, m, recast_rule::exact)[0] == 1);
}

TEST_CASE("violating tiles are counted, left alone and refused; the others are recast") {
  fp4_matrix m(300, 416);  // partial tiles at both ends
  std::uint64_t state = 7;
  for (auto& byte : m.codes) byte = static_cast<std::uint8_t>(next(state) >> 56);
  for (auto& scale : m.scales)
    scale = e8m0::from_bits(static_cast<std::uint8_t>(110 + (next(state) >> 60) % 12));
  const auto none = check(exec::reference{}, m, recast_rule::normal);
  CHECK(none == std::vector<std::int64_t>{0, 0, 0});
  expect_lossless("w1", {none.data(), 3});
  const auto spoil = [&](std::int64_t r, std::int64_t c, int bits) {
    m.view.row_scales(r)[c / 32] = e8m0::from_bits(static_cast<std::uint8_t>(bits));
    mxfp4::set(m.view.row(r), c, e2m1(1.0f));
  };
  spoil(5, 200, 90);     // tile (0, 1): far below the others
  spoil(299, 415, 140);  // tile (2, 3), the last: the others are far below
  spoil(256, 0, 90);     // tile (2, 0)
  for (const auto rule : {recast_rule::exact, recast_rule::normal}) {
    CHECK(check(exec::reference{}, m, rule) == std::vector<std::int64_t>{1, 0, 2});
    CHECK(check(exec::cpu(2), m, rule) == std::vector<std::int64_t>{1, 0, 2});
  }
  const auto some = check(exec::cpu(2), m, recast_rule::exact);
  try {
    expect_lossless("layers.3.ffn.experts.7.w1.weight", {some.data(), 3});
    FAIL("accepted");
  } catch (const contract_error& failure) {
    const std::string message = failure.what();
    CHECK(message.find("layers.3.ffn.experts.7.w1.weight") != std::string::npos);
    CHECK(message.find("3 tiles") != std::string::npos);
  }
}
