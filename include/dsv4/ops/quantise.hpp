// SPDX-License-Identifier: Apache-2.0
/// To a block-scaled format, from one, and there and back; to bf16: what a value becomes by being stored.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <type_traits>

namespace dsv4 {

namespace detail {
/// `m` must be a whole block-scaled matrix of the extents of `x`.
template <class M, class X>
void expect_same_extents(std::string_view op, const M& m, const X& x) {
  expect_extent(op, "quantised rows", m.extent[0], x.extent[0]);
  expect_extent(op, "quantised columns", m.extent[1], x.extent[1]);
  expect_extent(op, "quantised first row within its block", m.skipped_rows, 0);
}
}  // namespace detail

/// quantised = x in format `F`: per block s = scale(max |x|) and code = element(x / s), to the nearest, ties
/// to even (docs/numeric-types.md). A block with a NaN or an infinity becomes NaN altogether.
template <block_format F, class T, space S = space::host>
struct quantise {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> x;  // (N, D)
  };
  struct outputs {
    block_scaled_matrix<F, S> quantised;  // (N, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::expect_same_extents("quantise", out.quantised, in.x);
    detail::dispatch<quantise>(p, in, out);
  }
};

/// x = element * scale.
template <block_format F, class T, space S = space::host>
struct dequantise {
  static constexpr space memory = S;
  struct inputs {
    block_scaled_matrix<const F, S> quantised;  // (N, D)
  };
  struct outputs {
    matrix_view<T, S> x;  // (N, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("dequantise", "x rows", out.x.extent[0], in.quantised.extent[0]);
    expect_extent("dequantise", "x columns", out.x.extent[1], in.quantised.extent[1]);
    detail::dispatch<dequantise>(p, in, out);
  }
};

/// dequantise(quantise(x)), in place, for formats whose blocks are parts of rows.
template <block_format F, class T, space S = space::host>
struct round_trip {
  static_assert(F::block_rows == 1, "round_trip: blocks must be parts of rows");
  static constexpr space memory = S;
  struct inputs {};
  struct outputs {
    matrix_view<T, S> x;  // (N, D), read and written
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::dispatch<round_trip>(p, in, out);
  }
};

/// y = x rounded to bf16, to the nearest, ties to even; kept as bf16 or, exactly, as T.
template <class T, class Y, space S = space::host>
struct round_to_bf16 {
  static_assert(std::is_same_v<Y, bf16> || std::is_same_v<Y, T>, "round_to_bf16: Y must be bf16 or T");
  static constexpr space memory = S;
  struct inputs {
    vector_view<const T, S> x;  // (N)
  };
  struct outputs {
    vector_view<Y, S> y;  // (N), may be x
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("round_to_bf16", "y", out.y.extent[0], in.x.extent[0]);
    detail::dispatch<round_to_bf16>(p, in, out);
  }
};

namespace detail {
/// `value` as bf16 holds it, as a Y.
template <class Y, class T>
DSV4_HOST_DEVICE constexpr Y as_bf16_holds(T value) {
  const bf16 held(widen(value));
  if constexpr (std::is_same_v<Y, bf16>)
    return held;
  else
    return static_cast<Y>(static_cast<float>(held));
}

/// The largest magnitude of a block, or NaN when the block has one.
template <class T>
double largest_magnitude(matrix_view<const T> x, std::int64_t r0, std::int64_t r1, std::int64_t c0,
                         std::int64_t c1) {
  T amax = 0;
  bool nan = false;
  for (std::int64_t r = r0; r < r1; ++r) {
    const T* row = x.data + r * x.stride[0];
    for (std::int64_t c = c0; c < c1; ++c) {
      const T a = std::abs(row[c]);
      amax = a > amax ? a : amax;
      nan |= a != a;
    }
  }
  return nan ? std::numeric_limits<double>::quiet_NaN() : double(amax);
}

/// One row of blocks: rows [r0, r1) of x.
template <class F, class T>
void quantise_rows(matrix_view<const T> x, const block_scaled_matrix<F>& out, std::int64_t r0,
                   std::int64_t r1) {
  const std::int64_t width = x.extent[1];
  e8m0* scales = out.row_scales(r0);
  for (std::int64_t c0 = 0; c0 < width; c0 += F::block_columns) {
    const std::int64_t c1 = std::min<std::int64_t>(width, c0 + F::block_columns);
    const e8m0 s = F::scale(largest_magnitude(x, r0, r1, c0, c1));
    *scales++ = s;
    for (std::int64_t r = r0; r < r1; ++r)
      for (std::int64_t c = c0; c < c1; ++c) F::set(out.row(r), c, F::quantise(x(r, c), s));
  }
}

template <class F, class T>
void round_trip_row(matrix_view<T> x, std::int64_t t) {
  const std::int64_t width = x.extent[1];
  for (std::int64_t c0 = 0; c0 < width; c0 += F::block_columns) {
    const std::int64_t c1 = std::min<std::int64_t>(width, c0 + F::block_columns);
    const e8m0 s = F::scale(largest_magnitude<T>(x, t, t + 1, c0, c1));
    for (std::int64_t c = c0; c < c1; ++c)
      x(t, c) = T(static_cast<float>(F::quantise(x(t, c), s))) * T(static_cast<float>(s));
  }
}
}  // namespace detail

template <class F, class T>
struct kernel<quantise<F, T>, exec::reference> {
  using op = quantise<F, T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t r = 0; r < in.x.extent[0]; r += F::block_rows)
      detail::quantise_rows(in.x, out.quantised, r, std::min(in.x.extent[0], r + F::block_rows));
  }
};

template <class F, class T>
struct kernel<dequantise<F, T>, exec::reference> {
  using op = dequantise<F, T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t r = 0; r < out.x.extent[0]; ++r)
      for (std::int64_t c = 0; c < out.x.extent[1]; ++c) out.x(r, c) = T(in.quantised(r, c));
  }
};

template <class F, class T>
struct kernel<round_trip<F, T>, exec::reference> {
  using op = round_trip<F, T>;
  static void forward(const auto&, const typename op::inputs&, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t) detail::round_trip_row<F>(out.x, t);
  }
};

template <class T, class Y>
struct kernel<round_to_bf16<T, Y>, exec::reference> {
  using op = round_to_bf16<T, Y>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t i = 0; i < in.x.extent[0]; ++i) out.y(i) = detail::as_bf16_holds<Y>(in.x(i));
  }
};

template <class F, class T>
struct kernel<quantise<F, T>, exec::cpu>;  // in ops/cpu/quantise.hpp

template <class F, class T>
struct kernel<dequantise<F, T>, exec::cpu>;  // in ops/cpu/quantise.hpp

template <class F, class T>
struct kernel<round_trip<F, T>, exec::cpu>;  // in ops/cpu/quantise.hpp

template <class T, class Y>
struct kernel<round_to_bf16<T, Y>, exec::cpu>;  // in ops/cpu/quantise.hpp

}  // namespace dsv4
