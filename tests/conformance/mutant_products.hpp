// SPDX-License-Identifier: Apache-2.0
/// Known bugs of products and of number formats. Included by mutant.hpp.
#pragma once

#include "mutant.hpp"

namespace dsv4::testing {

template <class T, class W, class X>
struct mistakes_of<linear<T, space::host, W, X>> {
  using op = linear<T, space::host, W, X>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (std::is_same_v<X, T>) {
      if (!m.here("router in bf16")) return false;
      for (std::int64_t t = 0; t < out.y.extent[0]; ++t)
        for (std::int64_t o = 0; o < out.y.extent[1]; ++o) {
          double sum = 0;
          for (std::int64_t i = 0; i < in.x.extent[1]; ++i)
            sum += double(float(bf16(in.x(t, i)))) * double(float(bf16(to_double(in.weight(o, i)))));
          out.y(t, o) = T(sum);
        }
      return true;
    }
    return false;
  }
};

template <class T, class X>
struct mistakes_of<grouped_linear<T, space::host, mxfp4, X>> {
  using op = grouped_linear<T, space::host, mxfp4, X>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    const bool nibbles = m.here("nibbles swapped"), number = m.here("scale as number");
    if (!nibbles && !number) return false;
    for (std::int64_t e = 0; e < in.weight.extent[0]; ++e)
      for (std::int64_t r = in.offsets(e); r < in.offsets(e + 1); ++r)
        for (std::int64_t o = 0; o < out.y.extent[1]; ++o) {
          const auto matrix = in.weight[e];
          double sum = 0;
          for (std::int64_t i = 0; i < in.weight.extent[2]; ++i) {
            const double scale =
                number ? double(matrix.row_scales(o)[i / 32].bits) : double(matrix.row_scales(o)[i / 32]);
            sum +=
                to_double(in.x(r, i)) * scale * double(float(mxfp4::get(matrix.row(o), nibbles ? i ^ 1 : i)));
          }
          out.y(r, o) = T(sum);
        }
    return true;
  }
};

template <class F, class T>
struct mistakes_of<dequantise<F, T>> {
  using op = dequantise<F, T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    const bool nibbles = F::packed && m.here("nibbles swapped"), number = m.here("scale as number"),
               fnuz = !F::packed && m.here("fnuz");
    if (!nibbles && !number && !fnuz) return false;
    for (std::int64_t r = 0; r < out.x.extent[0]; ++r)
      for (std::int64_t c = 0; c < out.x.extent[1]; ++c) {
        const e8m0 scale = in.quantised.row_scales(r)[c / F::block_columns];
        const auto code = F::get(in.quantised.row(r), nibbles ? c ^ 1 : c);
        const double value = fnuz ? double(float(e4m3fnuz::from_bits(code.bits))) : double(float(code));
        out.x(r, c) = T(value * (number ? double(scale.bits) : double(scale)));
      }
    return true;
  }
};

}  // namespace dsv4::testing
