// SPDX-License-Identifier: Apache-2.0
/// What the lightning indexer is trained by: the divergence of its distribution over compressed entries from
/// that of the attention it serves.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dsv4 {
/// Over S_t, the entries `selected[t, :]` (-1 is none; the sparse stage) or, without, all that are complete
/// at position first_position + t (the dense warm-up; docs/training.md):
///   A[t, h, s] = e^{scale q[t, h] . compressed[s]} / (sum over S_t of the same + e^{sinks[h]}), the sink
///   only
///                when `target_includes_sink`: heads that mostly look at it then weigh less;
///   p[t, s] = sum_h A[t, h, s] / max(1e-10, sum_{h, s'} A[t, h, s']), the target, a constant;
///   I[t, s] = index_scale sum_h index_weights[t, h] max(0, index_q[t, h] . index_keys[s]);
///   loss[t] = sum_s p log(p / softmax_s(I)), 0 where S_t is empty.
/// backward, with dI = dloss (softmax(I) sum_s p - p) and G[h, s] = index_scale dI w_h [index_q_h . key_s >
/// 0]:
///   dindex_weights_h = index_scale sum_s dI max(0, index_q_h . key_s),
///   dindex_q_h = sum_s G[h, s] key_s,   dindex_keys_s = sum_{t, h} G[h, s] index_q_h.
/// Memory is linear in the entries.
template <class T, space S = space::host>
struct indexer_loss {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> q;                    // (N, H, D), of the main attention, rotated
    matrix_view<const T, S> compressed;           // (E, D)
    vector_view<const T, S> sinks;                // (H), read with target_includes_sink
    tensor_view<const T, S> index_q;              // (N, J, C)
    matrix_view<const T, S> index_keys;           // (E, C)
    matrix_view<const T, S> index_weights;        // (N, J)
    matrix_view<const std::int32_t, S> selected;  // (N, k) or empty
    std::int64_t first_position;
    std::int64_t ratio;  ///< tokens per entry
    double scale;
    double index_scale;  ///< (J C)^-1/2 in the released models; index_topk does without, the softmax cannot
    bool target_includes_sink = false;
  };
  struct outputs {
    vector_view<T, S> loss;  // (N)
  };
  struct upstream {
    vector_view<const T, S> dloss;  // (N)
  };
  struct gradients {
    tensor_view<T, S> dindex_q;        // (N, J, C)
    matrix_view<T, S> dindex_keys;     // (E, C)
    matrix_view<T, S> dindex_weights;  // (N, J)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    check(in);
    expect_extent("indexer_loss", "loss", out.loss.extent[0], in.q.extent[0]);
    detail::dispatch<indexer_loss>(p, in, out);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const upstream& up,
                       const gradients& g) {
    check(in);
    expect_extent("indexer_loss", "dloss", up.dloss.extent[0], in.q.extent[0]);
    detail::expect_gradient("indexer_loss", "dindex_q", g.dindex_q, in.index_q);
    detail::expect_gradient("indexer_loss", "dindex_keys", g.dindex_keys, in.index_keys);
    detail::expect_gradient("indexer_loss", "dindex_weights", g.dindex_weights, in.index_weights);
    detail::dispatch_backward<indexer_loss>(p, w, in, up, g);
  }

  /// Sums of attention smaller than this do not become a target of weight 1.
  static constexpr double least_mass = 1e-10;

 private:
  static void check(const inputs& in) {
    const std::int64_t n = in.q.extent[0], visible = (in.first_position + n) / in.ratio;
    expect_extent("indexer_loss", "compressed width", in.compressed.extent[1], in.q.extent[2]);
    if (in.target_includes_sink) expect_extent("indexer_loss", "sinks", in.sinks.extent[0], in.q.extent[1]);
    expect_extent("indexer_loss", "index_q rows", in.index_q.extent[0], n);
    expect_extent("indexer_loss", "index_keys width", in.index_keys.extent[1], in.index_q.extent[2]);
    expect_extent("indexer_loss", "index_weights rows", in.index_weights.extent[0], n);
    expect_extent("indexer_loss", "index_weights width", in.index_weights.extent[1], in.index_q.extent[1]);
    if (in.selected.data) expect_extent("indexer_loss", "selected rows", in.selected.extent[0], n);
    for (std::int64_t entries : {in.compressed.extent[0], in.index_keys.extent[0]})
      expect(in.selected.data || entries >= visible, "indexer_loss", "compressed and index_keys",
             "every visible entry", entries);
  }
};

template <class T>
struct kernel<indexer_loss<T>, exec::reference> {
  using op = indexer_loss<T>;

  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      double loss = 0;
      for (const entry& e : entries(in, t))
        if (e.target > 0) loss += e.target * (std::log(e.target) - e.log_estimate);
      out.loss(t) = T(loss);
    }
  }

  static void backward(const auto&, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t heads = in.index_q.extent[1], dim = in.index_q.extent[2];
    std::vector<double> dkeys(static_cast<std::size_t>(in.index_keys.extent[0] * dim), 0.0);
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      const auto all = entries(in, t);
      double mass = 0;
      for (const entry& e : all) mass += e.target;
      for (std::int64_t h = 0; h < heads; ++h) {
        std::vector<double> dq(static_cast<std::size_t>(dim), 0.0);
        double dweight = 0;
        for (const entry& e : all) {
          const double d = index_dot(in, t, h, e.row);
          if (d <= 0) continue;
          const double di =
              in.index_scale * double(up.dloss(t)) * (std::exp(e.log_estimate) * mass - e.target);
          dweight += di * d;
          for (std::int64_t c = 0; c < dim; ++c) {
            const double dd = di * double(in.index_weights(t, h));
            dq[static_cast<std::size_t>(c)] += dd * double(in.index_keys(e.row, c));
            dkeys[static_cast<std::size_t>(e.row * dim + c)] += dd * double(in.index_q(t, h, c));
          }
        }
        if (g.dindex_weights.data) g.dindex_weights(t, h) = T(dweight);
        for (std::int64_t c = 0; g.dindex_q.data && c < dim; ++c)
          g.dindex_q(t, h, c) = T(dq[static_cast<std::size_t>(c)]);
      }
    }
    for (std::int64_t e = 0; e < g.dindex_keys.extent[0]; ++e)
      for (std::int64_t c = 0; c < dim; ++c)
        g.dindex_keys(e, c) = T(dkeys[static_cast<std::size_t>(e * dim + c)]);
  }

 private:
  struct entry {
    std::int64_t row;
    double target;        ///< p
    double log_estimate;  ///< log softmax(I)
  };

  static double index_dot(const typename op::inputs& in, std::int64_t t, std::int64_t h, std::int64_t s) {
    double d = 0;
    for (std::int64_t c = 0; c < in.index_q.extent[2]; ++c)
      d += double(in.index_q(t, h, c)) * double(in.index_keys(s, c));
    return d;
  }

  static std::vector<entry> entries(const typename op::inputs& in, std::int64_t t) {
    std::vector<entry> all;
    if (in.selected.data) {
      for (std::int64_t j = 0; j < in.selected.extent[1]; ++j)
        if (in.selected(t, j) >= 0) all.push_back({in.selected(t, j), 0, 0});
    } else {
      for (std::int64_t s = 0; (s + 1) * in.ratio <= in.first_position + t + 1; ++s) all.push_back({s, 0, 0});
    }
    if (all.empty()) return all;

    double mass = 0;
    for (std::int64_t h = 0; h < in.q.extent[1]; ++h) {
      std::vector<double> a;
      double top = in.target_includes_sink ? double(in.sinks(h)) : -std::numeric_limits<double>::infinity();
      for (const entry& e : all) {
        double d = 0;
        for (std::int64_t c = 0; c < in.q.extent[2]; ++c)
          d += double(in.q(t, h, c)) * double(in.compressed(e.row, c));
        a.push_back(d * in.scale);
        top = std::max(top, a.back());
      }
      double sum = in.target_includes_sink ? std::exp(double(in.sinks(h)) - top) : 0;
      for (double& v : a) sum += v = std::exp(v - top);
      for (std::size_t i = 0; i < all.size(); ++i) all[i].target += a[i] / sum, mass += a[i] / sum;
    }
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (entry& e : all) {
      e.target /= std::max(op::least_mass, mass);
      for (std::int64_t h = 0; h < in.index_q.extent[1]; ++h)
        e.log_estimate +=
            in.index_scale * double(in.index_weights(t, h)) * std::max(0.0, index_dot(in, t, h, e.row));
      top = std::max(top, e.log_estimate);
    }
    for (const entry& e : all) sum += std::exp(e.log_estimate - top);
    for (entry& e : all) e.log_estimate -= top + std::log(sum);
    return all;
  }
};

template <class T>
struct kernel<indexer_loss<T>, exec::cpu>;  // in ops/cpu/indexer_loss.hpp

}  // namespace dsv4
