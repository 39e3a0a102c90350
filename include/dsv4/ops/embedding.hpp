// SPDX-License-Identifier: Apache-2.0
/// Token embedding, copied to every residual stream.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/widen.hpp>

namespace dsv4 {
/// x[t, i, :] = table[tokens[t], :] for each of the n streams i (specification, section 2).
/// The table may be stored narrower (`W`). Throws contract_error when a token id is outside [0, V).
template <class T, space S = space::host, class W = T>
struct embedding {
  static constexpr space memory = S;
  struct inputs {
    vector_view<const std::int32_t, S> tokens;  // (N)
    matrix_view<const W, S> table;              // (V, D)
  };
  struct outputs {
    tensor_view<T, S> x;  // (N, n, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("embedding", "x rows", out.x.extent[0], in.tokens.extent[0]);
    expect_extent("embedding", "x width", out.x.extent[2], in.table.extent[1]);
    detail::dispatch<embedding>(p, in, out);
  }
};

template <class T, class W>
struct kernel<embedding<T, space::host, W>, exec::reference> {
  using op = embedding<T, space::host, W>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t) {
      const std::int64_t id = in.tokens(t);
      expect(id >= 0 && id < in.table.extent[0], "embedding", "tokens[" + std::to_string(t) + "]",
             "a token id from 0 to " + std::to_string(in.table.extent[0] - 1), id);
      for (std::int64_t i = 0; i < out.x.extent[1]; ++i)
        for (std::int64_t c = 0; c < out.x.extent[2]; ++c) out.x(t, i, c) = T(widen(in.table(id, c)));
    }
  }
};

/// A copy: nothing to win over the reference.
template <class T, class W>
struct kernel<embedding<T, space::host, W>, exec::cpu>
    : kernel<embedding<T, space::host, W>, exec::reference> {};

}  // namespace dsv4
