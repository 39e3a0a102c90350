// SPDX-License-Identifier: Apache-2.0
/// Rounding to formats of storage on host threads: rows of blocks are independent. Bits are those of the
/// reference.
#pragma once

#include <dsv4/ops/cpu/stored_gemm.hpp>
#include <dsv4/ops/quantise.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace dsv4 {

namespace detail {

/// Rows [r0, r1) of x, which are one row of blocks.
template <class F, class T>
void quantise_blocks(const quantise_kernels<F>& kernels, const matrix_view<const T>& x,
                     const block_scaled_matrix<F>& out, std::int64_t r0, std::int64_t r1) {
  constexpr std::int64_t most = F::block_columns;
  e8m0* scales = out.row_scales(r0);
  for (std::int64_t c0 = 0; c0 < x.extent[1]; c0 += most, ++scales) {
    const std::int64_t count = std::min(most, x.extent[1] - c0);
    if constexpr (std::is_same_v<T, float>)
      if (kernels.quantise != nullptr && count % 16 == 0 &&
          kernels.quantise(x.data + r0 * x.stride[0] + c0, x.stride[0], r1 - r0, count,
                           out.row(r0) + F::row_bytes(c0), out.row_stride, *scales))
        continue;
    const e8m0 s = F::scale(largest_magnitude(x, r0, r1, c0, c0 + count));
    *scales = s;
    for (std::int64_t r = r0; r < r1; ++r)
      for (std::int64_t c = c0; c < c0 + count; ++c) F::set(out.row(r), c, F::quantise(x(r, c), s));
  }
}

template <class F, class T>
void round_trip_blocks(const quantise_kernels<F>& kernels, const matrix_view<T>& x, std::int64_t t) {
  constexpr std::int64_t most = F::block_columns;
  for (std::int64_t c0 = 0; c0 < x.extent[1]; c0 += most) {
    const std::int64_t count = std::min(most, x.extent[1] - c0);
    if constexpr (std::is_same_v<T, float>)
      if (kernels.round_trip != nullptr && count % 16 == 0 && kernels.round_trip(&x(t, c0), count)) continue;
    round_trip_row<F>(x.columns(c0, count), t);
  }
}

}  // namespace detail

template <class F, class T>
struct kernel<quantise<F, T>, exec::cpu> {
  using op = quantise<F, T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t rows = in.x.extent[0];
    const auto kernels = detail::best_quantise_kernels<F>();
    p.parallel_for(F::scale_rows(rows), 1 + 16384 / (in.x.extent[1] * F::block_rows + 1),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t b = begin; b < end; ++b)
                       detail::quantise_blocks(kernels, in.x, out.quantised, b * F::block_rows,
                                               std::min(rows, (b + 1) * F::block_rows));
                   });
  }
};

template <class F, class T>
struct kernel<dequantise<F, T>, exec::cpu> {
  using op = dequantise<F, T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t width = out.x.extent[1], chunk = detail::chunk_bytes / std::int64_t{sizeof(T)};
    const auto& kernels = detail::best_stored_kernels<T, F>();
    p.parallel_for(out.x.extent[0], 1 + 16384 / (width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = 0; c < width; c += chunk)
        kernels.decode(in.quantised.rows(begin, end - begin), c, std::min(chunk, width - c),
                       out.x.data + begin * out.x.stride[0] + c, out.x.stride[0]);
    });
  }
};

template <class F, class T>
struct kernel<round_trip<F, T>, exec::cpu> {
  using op = round_trip<F, T>;
  static void forward(const exec::cpu& p, const typename op::inputs&, const typename op::outputs& out) {
    const auto kernels = detail::best_quantise_kernels<F>();
    p.parallel_for(out.x.extent[0], 1 + 16384 / (out.x.extent[1] + 1),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t t = begin; t < end; ++t) detail::round_trip_blocks(kernels, out.x, t);
                   });
  }
};

template <class T, class Y>
struct kernel<round_to_bf16<T, Y>, exec::cpu> {
  using op = round_to_bf16<T, Y>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.parallel_for(in.x.extent[0], 16384, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) out.y(i) = detail::as_bf16_holds<Y>(in.x(i));
    });
  }
};

}  // namespace dsv4
