// SPDX-License-Identifier: Apache-2.0
/// Multi-query attention over a sliding window and compressed entries, one softmax with a sink.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/numeric/widen.hpp>
#include <dsv4/ops/backward.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsv4 {
/// For query t at position p = first_position + t, head h, over the rows j of its candidate set J_t:
///   o[t, h, :] = sum_j e^{s_j} k_j / (sum_j e^{s_j} + e^{sinks[h]}),   s_j = scale q[t, h, :] . k_j,
/// keys being the values too (docs/blocks/attention.md). J_t is the last `window` positions up to p, from
/// `local` (row r is position first_local + r), and compressed entries: `selected[t, :]` (-1 is none) when
/// given, else all those complete at p, (j + 1) * ratio <= p + 1. Scores of a query are the only temporaries.
/// backward, with p_j = e^{s_j - lse}, lse the logarithm of the sum above, and delta = do . o, per query,
/// head:
///   ds_j = p_j (do . k_j - delta),   dq = scale sum_j ds_j k_j,   dsinks[h] += -sum_t e^{sinks[h] - lse}
///   delta, dk_j = sum_{t, h: j in J_t} p_j do + scale ds_j q: as value and as key, in one sum. Rows of local
///   and
/// compressed that no query saw get 0. The choice of entries has no gradient. dk is summed in a fixed order,
/// but where a policy allows any order (exec::cuda, options::sums) and has a faster kernel for that.
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
  struct saved {
    /// (N, H), written by forward: without it backward would have to see all keys twice.
    matrix_view<wide_scalar<T>, S> lse;
    /// (N, H, D), forward's output, for backward: it holds the mean of do . k_j that delta is.
    tensor_view<const T, S> o;
  };
  struct upstream {
    tensor_view<const T, S> do_;  // (N, H, D)
  };
  struct gradients {
    tensor_view<T, S> dq;           // (N, H, D)
    matrix_view<T, S> dlocal;       // (R, D)
    matrix_view<T, S> dcompressed;  // (E, D)
    vector_view<T, S> dsinks;       // (H)
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out, const saved& keep = {}) {
    check(in);
    expect_extent("sparse_attention", "o rows", out.o.extent[0], in.q.extent[0]);
    if (keep.lse.data) {
      expect_extent("sparse_attention", "lse rows", keep.lse.extent[0], in.q.extent[0]);
      expect_extent("sparse_attention", "lse columns", keep.lse.extent[1], in.q.extent[1]);
    }
    detail::dispatch<sparse_attention>(p, in, out, keep);
  }

  template <policy P>
  static void backward(const P& p, basic_workspace<S>& w, const inputs& in, const saved& kept,
                       const upstream& up, const gradients& g) {
    check(in);
    expect_extent("sparse_attention", "lse rows", kept.lse.extent[0], in.q.extent[0]);
    expect_extent("sparse_attention", "lse columns", kept.lse.extent[1], in.q.extent[1]);
    detail::expect_upstream("sparse_attention", "o", kept.o, in.q);
    detail::expect_upstream("sparse_attention", "do", up.do_, in.q);
    detail::expect_gradient("sparse_attention", "dq", g.dq, in.q);
    detail::expect_gradient("sparse_attention", "dlocal", g.dlocal, in.local);
    detail::expect_gradient("sparse_attention", "dcompressed", g.dcompressed, in.compressed);
    detail::expect_gradient("sparse_attention", "dsinks", g.dsinks, in.sinks);
    detail::dispatch_backward<sparse_attention>(p, w, in, kept, up, g);
  }

 private:
  static void check(const inputs& in) {
    expect_extent("sparse_attention", "local width", in.local.extent[1], in.q.extent[2]);
    expect_extent("sparse_attention", "sinks", in.sinks.extent[0], in.q.extent[1]);
    if (in.q.extent[0] > 0) {
      const std::int64_t oldest = std::max<std::int64_t>(0, in.first_position - in.window + 1);
      expect(in.first_local <= oldest, "sparse_attention", "first_local", numbered{"at most ", oldest},
             in.first_local);
      expect(in.first_local + in.local.extent[0] >= in.first_position + in.q.extent[0], "sparse_attention",
             "local rows", "one for every query", in.local.extent[0]);
    }
    if (in.selected.data)
      expect_extent("sparse_attention", "selected rows", in.selected.extent[0], in.q.extent[0]);
    if (in.ratio > 0 && !in.selected.data)
      expect(in.compressed.extent[0] >= (in.first_position + in.q.extent[0]) / in.ratio, "sparse_attention",
             "compressed", "every visible entry", in.compressed.extent[0]);
  }
};

template <class T>
struct kernel<sparse_attention<T>, exec::reference> {
  using op = sparse_attention<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out,
                      const typename op::saved& keep) {
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      std::vector<const T*> keys;
      for_each_candidate(in, t, [&](bool local, std::int64_t row) {
        keys.push_back(local ? &in.local(row, 0) : &in.compressed(row, 0));
      });
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
        if (keep.lse.data) keep.lse(t, h) = wide_scalar<T>(top + std::log(sum));
        for (std::int64_t c = 0; c < in.q.extent[2]; ++c) {
          double value = 0;
          for (std::size_t j = 0; j < keys.size(); ++j) value += weight[j] * double(keys[j][c]);
          out.o(t, h, c) = T(value / sum);
        }
      }
    }
  }

  /// Needs nothing of what forward kept.
  static void backward(const auto&, workspace&, const typename op::inputs& in, const typename op::saved&,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t heads = in.q.extent[1], dim = in.q.extent[2];
    const auto sums = [&](const matrix_view<T>& of) {
      return std::vector<double>(static_cast<std::size_t>(of.data ? of.size() : 0), 0.0);
    };
    std::vector<double> dlocal = sums(g.dlocal), dcompressed = sums(g.dcompressed),
                        dsinks(static_cast<std::size_t>(heads), 0.0);
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto q = [&](std::int64_t c) { return double(in.q(t, h, c)); };
        const auto d = [&](std::int64_t c) { return double(up.do_(t, h, c)); };
        struct candidate {
          const T* key;
          double* dkey;
          double p, dp;  ///< the weight, and do . key
        };
        std::vector<candidate> all;
        for_each_candidate(in, t, [&](bool local, std::int64_t row) {
          auto& to = local ? dlocal : dcompressed;
          all.push_back({local ? &in.local(row, 0) : &in.compressed(row, 0),
                         to.empty() ? nullptr : to.data() + row * dim, 0, 0});
        });
        double top = double(in.sinks(h));
        for (candidate& a : all) {
          for (std::int64_t c = 0; c < dim; ++c) {
            a.p += in.scale * q(c) * double(a.key[c]);
            a.dp += d(c) * double(a.key[c]);
          }
          top = std::max(top, a.p);
        }
        double sink = std::exp(double(in.sinks(h)) - top), sum = sink, delta = 0;
        for (candidate& a : all) sum += a.p = std::exp(a.p - top);
        for (candidate& a : all) a.p /= sum, delta += a.p * a.dp;
        dsinks[static_cast<std::size_t>(h)] -= sink / sum * delta;
        std::vector<double> dq(static_cast<std::size_t>(dim), 0.0);
        for (const candidate& a : all) {
          const double ds = a.p * (a.dp - delta);
          for (std::int64_t c = 0; c < dim; ++c) {
            dq[static_cast<std::size_t>(c)] += in.scale * ds * double(a.key[c]);
            if (a.dkey) a.dkey[c] += a.p * d(c) + in.scale * ds * q(c);
          }
        }
        for (std::int64_t c = 0; g.dq.data && c < dim; ++c)
          g.dq(t, h, c) = T(dq[static_cast<std::size_t>(c)]);
      }
    for (std::int64_t h = 0; g.dsinks.data && h < heads; ++h)
      g.dsinks(h) = T(double(g.dsinks(h)) + dsinks[static_cast<std::size_t>(h)]);
    for (std::int64_t i = 0; i < g.dlocal.extent[0] * dim; ++i)
      g.dlocal(i / dim, i % dim) = T(dlocal[static_cast<std::size_t>(i)]);
    for (std::int64_t i = 0; i < g.dcompressed.extent[0] * dim; ++i)
      g.dcompressed(i / dim, i % dim) = T(dcompressed[static_cast<std::size_t>(i)]);
  }

 private:
  /// Calls visit(local, row) for the candidates of query t.
  template <class Visit>
  static void for_each_candidate(const typename op::inputs& in, std::int64_t t, const Visit& visit) {
    const std::int64_t position = in.first_position + t;
    for (std::int64_t j = std::max<std::int64_t>(0, position - in.window + 1); j <= position; ++j)
      visit(true, j - in.first_local);
    if (in.selected.data) {
      for (std::int64_t j = 0; j < in.selected.extent[1]; ++j)
        if (in.selected(t, j) >= 0) visit(false, std::int64_t{in.selected(t, j)});
    } else if (in.ratio > 0) {
      for (std::int64_t j = 0; (j + 1) * in.ratio <= position + 1; ++j) visit(false, j);
    }
  }
};

template <class T>
struct kernel<sparse_attention<T>, exec::cpu>;  // in ops/cpu/sparse_attention.hpp

}  // namespace dsv4
