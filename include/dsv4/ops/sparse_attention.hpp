// SPDX-License-Identifier: Apache-2.0
/// Multi-query attention over a sliding window and compressed entries, one softmax with a sink.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsv4 {
/// For query t at position p = first_position + t, head h, over the rows j of its candidate set J_t:
///   o[t, h, :] = sum_j e^{s_j} k_j / (sum_j e^{s_j} + e^{sinks[h]}),   s_j = scale q[t, h, :] . k_j,
/// keys being the values too (specification, section 5). J_t is the last `window` positions up to p, from
/// `local` (row r is position first_local + r), and compressed entries: `selected[t, :]` (-1 is none) when
/// given, else all those complete at p, (j + 1) * ratio <= p + 1. Scores of a query are the only temporaries.
template <class T, space S = space::host>
struct sparse_attention {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> q;                    // (N, H, D)
    matrix_view<const T, S> local;                // (R, D)
    matrix_view<const T, S> compressed;           // (E, D), may be empty
    matrix_view<const std::int32_t, S> selected;  // (N, k) or empty
    vector_view<const T, S> sinks;                // (H)
    std::int64_t first_position;
    std::int64_t first_local;
    std::int64_t window;
    std::int64_t ratio;  ///< tokens per compressed entry, 0 without any
    double scale;
  };
  struct outputs {
    tensor_view<T, S> o;  // (N, H, D)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("sparse_attention", "local width", in.local.extent[1], in.q.extent[2]);
    expect_extent("sparse_attention", "sinks", in.sinks.extent[0], in.q.extent[1]);
    expect_extent("sparse_attention", "o rows", out.o.extent[0], in.q.extent[0]);
    if (in.q.extent[0] > 0) {
      const std::int64_t oldest = std::max<std::int64_t>(0, in.first_position - in.window + 1);
      expect(in.first_local <= oldest, "sparse_attention", "first_local", "at most " + std::to_string(oldest),
             in.first_local);
      expect(in.first_local + in.local.extent[0] >= in.first_position + in.q.extent[0], "sparse_attention",
             "local rows", "one for every query", in.local.extent[0]);
    }
    if (in.selected.data)
      expect_extent("sparse_attention", "selected rows", in.selected.extent[0], in.q.extent[0]);
    if (in.ratio > 0 && !in.selected.data)
      expect(in.compressed.extent[0] >= (in.first_position + in.q.extent[0]) / in.ratio, "sparse_attention",
             "compressed", "every visible entry", in.compressed.extent[0]);
    detail::dispatch<sparse_attention>(p, in, out);
  }
};

template <class T>
struct kernel<sparse_attention<T>, exec::reference> {
  using op = sparse_attention<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      const std::int64_t position = in.first_position + t;
      std::vector<const T*> keys;
      for (std::int64_t j = std::max<std::int64_t>(0, position - in.window + 1); j <= position; ++j)
        keys.push_back(&in.local(j - in.first_local, 0));
      if (in.selected.data) {
        for (std::int64_t j = 0; j < in.selected.extent[1]; ++j)
          if (in.selected(t, j) >= 0) keys.push_back(&in.compressed(in.selected(t, j), 0));
      } else if (in.ratio > 0) {
        for (std::int64_t j = 0; (j + 1) * in.ratio <= position + 1; ++j)
          keys.push_back(&in.compressed(j, 0));
      }
      for (std::int64_t h = 0; h < in.q.extent[1]; ++h) {
        std::vector<double> weight;
        double top = double(in.sinks(h));
        for (const T* key : keys) {
          double dot = 0;
          for (std::int64_t c = 0; c < in.q.extent[2]; ++c) dot += double(in.q(t, h, c)) * double(key[c]);
          weight.push_back(dot * in.scale);
          top = std::max(top, weight.back());
        }
        double sum = std::exp(double(in.sinks(h)) - top);
        for (double& w : weight) sum += w = std::exp(w - top);
        for (std::int64_t c = 0; c < in.q.extent[2]; ++c) {
          double value = 0;
          for (std::size_t j = 0; j < keys.size(); ++j) value += weight[j] * double(keys[j][c]);
          out.o(t, h, c) = T(value / sum);
        }
      }
    }
  }
};

template <class T>
struct kernel<sparse_attention<T>, exec::cpu>;  // in ops/cpu/sparse_attention.hpp

}  // namespace dsv4
