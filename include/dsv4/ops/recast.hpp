// SPDX-License-Identifier: Apache-2.0
/// MXFP4 weights as FP8 with 128 x 128 scales, without any rounding or not at all.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>

namespace dsv4 {

/// Which tiles are recast. With E = max(largest exponent of the tile's FP4 scales - 6, -127), the code of a
/// value v 2^e is v 2^(e - E), and every E2M1 magnitude times 2^k is an E4M3 number iff -8 <= k <= 6.
enum class recast_rule : std::uint8_t {
  exact,   ///< e - E >= -8 for all blocks with a value other than zero: scales within 2^14 of the largest
  normal,  ///< e - E >= -5 for all blocks, as DeepSeek's kernel asserts: within 2^11, every code a normal
           ///< number
};

/// fp8 = fp4, exactly. Tiles whose scales spread too far are counted in `violations` (per row of tiles), keep
/// their old bytes in `fp8`, and must not be used: callers keep those weights in FP4, or call
/// `expect_lossless`. A scale that is NaN counts as a violation.
template <space S = space::host>
struct recast {
  static constexpr space memory = S;
  struct inputs {
    block_scaled_matrix<const mxfp4, S> fp4;  // (O, I)
    recast_rule rule = recast_rule::exact;
  };
  struct outputs {
    block_scaled_matrix<fp8_weight, S> fp8;   // (O, I)
    vector_view<std::int64_t, S> violations;  // (ceil(O / 128)) tiles that cannot be recast
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("recast", "fp8 rows", out.fp8.extent[0], in.fp4.extent[0]);
    expect_extent("recast", "fp8 columns", out.fp8.extent[1], in.fp4.extent[1]);
    expect_extent("recast", "fp8 first row within its tile", out.fp8.skipped_rows, 0);
    expect_extent("recast", "violations", out.violations.extent[0], fp8_weight::scale_rows(in.fp4.extent[0]));
    detail::dispatch<recast>(p, in, out);
  }
};

/// Throws contract_error with the number of violating tiles when there is one. `name` is the weight's.
inline void expect_lossless(std::string_view name, vector_view<const std::int64_t> violations) {
  const std::int64_t count =
      std::accumulate(violations.data, violations.data + violations.extent[0], std::int64_t{0});
  if (count > 0)
    throw contract_error("recast", name, "FP4 scales within the lossless range in every 128 x 128 tile",
                         std::to_string(count) + " tiles beyond it");
}

namespace detail {
/// Recasts the tile at (r0, c0), or returns false and leaves it.
inline bool recast_tile(const recast<>::inputs& in, const block_scaled_matrix<fp8_weight>& out,
                        std::int64_t r0, std::int64_t c0) {
  constexpr int group = mxfp4::block_columns;
  const std::int64_t r1 = std::min(r0 + fp8_weight::block_rows, in.fp4.extent[0]);
  const std::int64_t c1 = std::min(c0 + fp8_weight::block_columns, in.fp4.extent[1]);
  int lowest = 255, highest = -1;  // biased exponents of the blocks that matter
  for (std::int64_t r = r0; r < r1; ++r)
    for (std::int64_t c = c0; c < c1; c += group) {
      const e8m0 scale = in.fp4.row_scales(r)[c / group];
      if (scale.is_nan()) return false;
      bool zero = in.rule == recast_rule::exact;
      for (std::int64_t i = c; zero && i < std::min(c + group, c1); ++i)
        zero = (mxfp4::get(in.fp4.row(r), i).bits & 7) == 0;
      if (zero) continue;
      lowest = std::min<int>(lowest, scale.bits);
      highest = std::max<int>(highest, scale.bits);
    }
  if (highest < 0) lowest = highest = 6;  // all zero: any scale does
  const int tile = std::max(highest - 6, 0);
  if (lowest - tile < (in.rule == recast_rule::exact ? -8 : -5)) return false;
  out.row_scales(r0)[c0 / fp8_weight::block_columns] = e8m0::from_bits(static_cast<std::uint8_t>(tile));
  for (std::int64_t r = r0; r < r1; ++r)
    for (std::int64_t c = c0; c < c1; ++c) {
      const e2m1 code = mxfp4::get(in.fp4.row(r), c);
      const int k = in.fp4.row_scales(r)[c / group].bits - tile;
      // A zero keeps its sign; its block's exponent may be anything.
      const float value = static_cast<float>(code);
      out.row(r)[c] = e4m3(value == 0 ? value : std::ldexp(value, k)).bits;
    }
  return true;
}

inline void recast_tile_row(const recast<>::inputs& in, const recast<>::outputs& out, std::int64_t row) {
  std::int64_t violations = 0;
  for (std::int64_t c = 0; c < in.fp4.extent[1]; c += fp8_weight::block_columns)
    violations += !recast_tile(in, out.fp8, row * fp8_weight::block_rows, c);
  out.violations(row) = violations;
}
}  // namespace detail

template <>
struct kernel<recast<>, exec::reference> {
  static void forward(const auto&, const recast<>::inputs& in, const recast<>::outputs& out) {
    for (std::int64_t row = 0; row < out.violations.extent[0]; ++row) detail::recast_tile_row(in, out, row);
  }
};

/// The same tile by tile, threads taking rows of tiles: a conversion that is done once per weight.
template <>
struct kernel<recast<>, exec::cpu> {
  static void forward(const exec::cpu& p, const recast<>::inputs& in, const recast<>::outputs& out) {
    p.parallel_for(out.violations.extent[0], 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) detail::recast_tile_row(in, out, row);
    });
  }
};

}  // namespace dsv4
