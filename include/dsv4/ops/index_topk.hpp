// SPDX-License-Identifier: Apache-2.0
/// The lightning indexer: scores compressed entries against each query and keeps the best.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace dsv4 {
/// I[t, s] = sum_h weights[t, h] max(0, q[t, h, :] . keys[s, :]) over the entries s visible to query t, those
/// with (s + 1) * ratio <= position + 1, position = first_position + t. selected[t, :] holds the k entries of
/// largest I in ascending order of s, ties to the lower s; -1 fills the tail (docs/blocks/kv-compressor.md).
/// Scores are never kept for all (t, s) at once. The scale dim^-1/2 heads^-1/2 does not change the order and
/// is left out.
template <class T, space S = space::host>
struct index_topk {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> q;        // (N, H, C)
    matrix_view<const T, S> keys;     // (E, C)
    matrix_view<const T, S> weights;  // (N, H)
    std::int64_t first_position;
    std::int64_t ratio;
  };
  struct outputs {
    matrix_view<std::int32_t, S> selected;  // (N, k)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("index_topk", "keys width", in.keys.extent[1], in.q.extent[2]);
    expect_extent("index_topk", "weights rows", in.weights.extent[0], in.q.extent[0]);
    expect_extent("index_topk", "weights width", in.weights.extent[1], in.q.extent[1]);
    expect_extent("index_topk", "selected rows", out.selected.extent[0], in.q.extent[0]);
    expect(in.keys.extent[0] >= (in.first_position + in.q.extent[0]) / in.ratio, "index_topk", "keys",
           "every visible entry", in.keys.extent[0]);
    detail::dispatch<index_topk>(p, in, out);
  }
};

template <class T>
struct kernel<index_topk<T>, exec::reference> {
  using op = index_topk<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      const std::int64_t visible = (in.first_position + t + 1) / in.ratio;
      std::vector<std::pair<double, std::int32_t>> scored;  // (-score, entry): sorting puts the best first
      for (std::int64_t s = 0; s < visible; ++s) {
        double score = 0;
        for (std::int64_t h = 0; h < in.q.extent[1]; ++h) {
          double dot = 0;
          for (std::int64_t c = 0; c < in.q.extent[2]; ++c)
            dot += double(in.q(t, h, c)) * double(in.keys(s, c));
          score += double(in.weights(t, h)) * std::max(0.0, dot);
        }
        scored.emplace_back(-score, static_cast<std::int32_t>(s));
      }
      std::sort(scored.begin(), scored.end());
      scored.resize(static_cast<std::size_t>(std::min(visible, out.selected.extent[1])));
      std::sort(scored.begin(), scored.end(),
                [](const auto& a, const auto& b) { return a.second < b.second; });
      for (std::int64_t j = 0; j < out.selected.extent[1]; ++j)
        out.selected(t, j) =
            j < static_cast<std::int64_t>(scored.size()) ? scored[static_cast<std::size_t>(j)].second : -1;
    }
  }
};

template <class T>
struct kernel<index_topk<T>, exec::cpu>;  // in ops/cpu/index_topk.hpp

}  // namespace dsv4
