// SPDX-License-Identifier: Apache-2.0
/// The balance loss on host threads: scores and gradients by rows, sums over a sequence by columns, in the
/// order of its tokens.
#pragma once

#include <dsv4/train/router_balance.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsv4 {

template <class T>
struct kernel<sequence_balance<T>, exec::cpu> {
  using op = sequence_balance<T>;
  /// Scores, their sums, and f.
  static std::int64_t scratch(const typename op::inputs& in) {
    const std::int64_t rows = in.logits.extent[0], experts = in.logits.extent[1];
    return rows * experts + rows + std::max<std::int64_t>(in.offsets.extent[0] - 1, 0) * (experts + 1);
  }

  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double>& scratch) {
    const std::int64_t rows = in.logits.extent[0], experts = in.logits.extent[1],
                       sequences = in.offsets.extent[0] - 1, grain = 1 + 1024 / (experts + 1);
    const matrix_view<double> scores(scratch.data, rows, experts);
    const vector_view<double> sums(scratch.data + rows * experts, rows);
    const matrix_view<double> f(sums.data + rows, sequences, experts);
    const vector_view<double> losses(f.data + sequences * experts, sequences);

    p.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        sums(t) = 0;
        for (std::int64_t e = 0; e < experts; ++e)
          sums(t) += scores(t, e) = route<T>::score(double(in.logits(t, e)));
      }
    });
    p.parallel_for(sequences, 1, [&](std::int64_t first, std::int64_t last) {
      std::vector<std::int64_t> loads(static_cast<std::size_t>(experts));
      std::vector<double> mean(static_cast<std::size_t>(experts));
      for (std::int64_t b = first; b < last; ++b) {
        const std::int64_t begin = in.offsets(b), length = in.offsets(b + 1) - begin;
        losses(b) = 0;
        if (length == 0) continue;
        std::fill(loads.begin(), loads.end(), 0);
        std::fill(mean.begin(), mean.end(), 0.0);
        count_loads(in.experts.rows(begin, length), {loads.data(), experts});
        for (std::int64_t t = begin; t < begin + length; ++t) {
          const double each = sums(t) > 0 ? 1 / sums(t) : 0;
          for (std::int64_t e = 0; e < experts; ++e) mean[static_cast<std::size_t>(e)] += scores(t, e) * each;
        }
        const double unit = double(experts) / (double(in.experts.extent[1]) * double(length));
        for (std::int64_t e = 0; e < experts; ++e) {
          f(b, e) = unit * double(loads[static_cast<std::size_t>(e)]);
          losses(b) += f(b, e) * mean[static_cast<std::size_t>(e)] / double(length);
        }
      }
    });
    out.loss(0) = 0;
    for (std::int64_t b = 0; b < sequences; ++b) out.loss(0) += in.scale * losses(b);
    if (!out.dlogits.data) return;

    p.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t b = 0;
      for (std::int64_t t = begin; t < end; ++t) {
        while (b < sequences && in.offsets(b + 1) <= t) ++b;
        if (b == sequences || t < in.offsets(b) || !(sums(t) > 0)) continue;
        const double length = double(in.offsets(b + 1) - in.offsets(b));
        double expected = 0;
        for (std::int64_t e = 0; e < experts; ++e) expected += f(b, e) * scores(t, e);
        expected /= sums(t);
        const double factor = in.scale / length / sums(t);
        for (std::int64_t e = 0; e < experts; ++e)
          out.dlogits(t, e) = T(double(out.dlogits(t, e)) +
                                factor * (f(b, e) - expected) * op::score_slope(double(in.logits(t, e))));
      }
    });
  }
};

}  // namespace dsv4
