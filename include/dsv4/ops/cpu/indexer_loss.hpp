// SPDX-License-Identifier: Apache-2.0
/// The indexer's loss on host threads: per query, all heads of both attentions against tiles of entries.
#pragma once

#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/indexer_loss.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace dsv4 {
template <class T>
struct kernel<indexer_loss<T>, exec::cpu> {
  using op = indexer_loss<T>;

  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.parallel_for(in.q.extent[0], 1, [&](std::int64_t begin, std::int64_t end) {
      query one(in);
      for (std::int64_t t = begin; t < end; ++t) out.loss(t) = one.loss(t);
    });
  }

  /// Queries are cut into groups, a matter of their number only; a group adds up the gradients of keys in a
  /// buffer of its own, and the buffers are added in the order of groups.
  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t n = in.q.extent[0], rows = in.index_keys.extent[0], dim = in.index_keys.extent[1];
    const std::int64_t groups = n == 0 ? 0 : std::clamp<std::int64_t>(n / 16, 1, most_groups);
    workspace::scope scope(w);
    const auto entries = [&](std::int64_t i) {  // that queries of group i may see
      return in.selected.data ? rows : (in.first_position + n * (i + 1) / groups) / in.ratio;
    };
    std::vector<T*> partial(static_cast<std::size_t>(groups), nullptr);
    if (g.dindex_keys.data)
      for (std::int64_t i = 0; i < groups; ++i)
        partial[static_cast<std::size_t>(i)] = w.take<T>(entries(i), dim).data;
    p.parallel_for(groups, 1, [&](std::int64_t first, std::int64_t last) {
      query one(in);
      for (std::int64_t i = first; i < last; ++i) {
        T* const dkeys = partial[static_cast<std::size_t>(i)];
        if (dkeys) std::fill_n(dkeys, entries(i) * dim, T(0));
        for (std::int64_t t = n * i / groups; t < n * (i + 1) / groups; ++t)
          one.gradients(t, up.dloss(t), g, dkeys);
      }
    });
    if (!g.dindex_keys.data) return;
    p.parallel_for(rows, 1 + 4096 / (dim + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        T* to = g.dindex_keys.data + r * g.dindex_keys.stride[0];
        std::fill_n(to, dim, T(0));
        for (std::int64_t i = 0; i < groups; ++i)
          for (std::int64_t c = 0; r < entries(i) && c < dim; ++c)
            to[c] += partial[static_cast<std::size_t>(i)][r * dim + c];
      }
    });
  }

 private:
  static constexpr std::int64_t most_groups = 32;
  static constexpr std::int64_t tile = 64;  ///< entries that are scored at once

  /// One query at a time; scratch is kept between queries.
  class query {
   public:
    explicit query(const typename op::inputs& in)
        : in_(in),
          gathered_(static_cast<std::size_t>(tile * std::max(in.q.extent[2], in.index_q.extent[2]))) {}

    T loss(std::int64_t t) {
      candidates(t);
      if (count_ == 0) return T(0);
      const T mass = targets(t), lse = estimates(t);
      double sum = 0;
      for (std::int64_t s = 0; s < count_; ++s) {
        const double p = double(target_[index(s)]) / double(mass);
        if (p > 0) sum += p * (std::log(p) - (double(estimate_[index(s)]) - double(lse)));
      }
      return T(sum);
    }

    void gradients(std::int64_t t, T dloss, const typename op::gradients& g, T* dkeys) {
      const std::int64_t heads = in_.index_q.extent[1], dim = in_.index_q.extent[2];
      candidates(t);
      const T mass = count_ ? targets(t) : T(1), lse = count_ ? estimates(t) : T(0);
      // What the target sums to: 1, unless the floor of the mass held it down.
      T whole = 0;
      for (std::int64_t s = 0; s < count_; ++s) whole += target_[index(s)] /= mass;
      for (std::int64_t s = 0; s < count_; ++s)
        estimate_[index(s)] =
            T(in_.index_scale) * dloss * (std::exp(estimate_[index(s)] - lse) * whole - target_[index(s)]);
      for (std::int64_t h = 0; h < heads; ++h) {
        T* dot = index_dots_.data() + h * count_;
        const T weight = in_.index_weights(t, h);
        T dweight = 0;
        for (std::int64_t s = 0; s < count_; ++s) {
          const bool above = dot[s] > 0;
          dweight += above ? estimate_[index(s)] * dot[s] : T(0);
          dot[s] = above ? estimate_[index(s)] * weight : T(0);
        }
        if (g.dindex_weights.data) g.dindex_weights(t, h) = dweight;
      }
      T* dq = g.dindex_q.data ? g.dindex_q.data + t * g.dindex_q.stride[0] : nullptr;
      for (std::int64_t h = 0; dq && h < heads; ++h) std::fill_n(dq + h * g.dindex_q.stride[1], dim, T(0));
      const T* q = in_.index_q.data + t * in_.index_q.stride[0];
      const std::int64_t ldq = in_.index_q.stride[1];
      tiles(in_.index_keys, [&](const T* keys, std::int64_t ld, std::int64_t s, std::int64_t n) {
        const T* d = index_dots_.data() + s;
        if (dq) kernels_.gemm_nn(d, count_, heads, keys, ld, n, dim, dq, g.dindex_q.stride[1], true);
        if (!dkeys) return;
        if (!in_.selected.data) {
          kernels_.gemm_tn(d, count_, n, q, ldq, heads, dim, dkeys + rows_[index(s)] * dim, dim, true);
          return;
        }
        product_.resize(static_cast<std::size_t>(tile * dim));
        kernels_.gemm_tn(d, count_, n, q, ldq, heads, dim, product_.data(), dim, false);
        for (std::int64_t i = 0; i < n; ++i) {
          T* to = dkeys + rows_[index(s + i)] * dim;
          for (std::int64_t c = 0; c < dim; ++c) to[c] += product_[index(i * dim + c)];
        }
      });
    }

   private:
    static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

    void candidates(std::int64_t t) {
      rows_.clear();
      if (in_.selected.data) {
        for (std::int64_t j = 0; j < in_.selected.extent[1]; ++j)
          if (in_.selected(t, j) >= 0) rows_.push_back(in_.selected(t, j));
      } else {
        for (std::int64_t s = 0; (s + 1) * in_.ratio <= in_.first_position + t + 1; ++s) rows_.push_back(s);
      }
      count_ = static_cast<std::int64_t>(rows_.size());
    }

    /// Calls visit(keys, ld, s, n) for the keys of the candidates [s, s + n).
    template <class Visit>
    void tiles(const matrix_view<const T>& keys, const Visit& visit) {
      const std::int64_t dim = keys.extent[1];
      for (std::int64_t s = 0; s < count_; s += tile) {
        const std::int64_t n = std::min(tile, count_ - s);
        if (!in_.selected.data) {
          visit(keys.data + rows_[index(s)] * keys.stride[0], keys.stride[0], s, n);
          continue;
        }
        for (std::int64_t i = 0; i < n; ++i)
          std::copy_n(keys.data + rows_[index(s + i)] * keys.stride[0], dim, gathered_.data() + i * dim);
        visit(gathered_.data(), dim, s, n);
      }
    }

    /// target_ becomes the attention summed over heads; returns what it is to be divided by.
    T targets(std::int64_t t) {
      const std::int64_t heads = in_.q.extent[1], dim = in_.q.extent[2];
      scores_.resize(index(heads * count_));
      tiles(in_.compressed, [&](const T* keys, std::int64_t ld, std::int64_t s, std::int64_t n) {
        kernels_.gemm_nt(in_.q.data + t * in_.q.stride[0], in_.q.stride[1], heads, keys, ld, n, dim,
                         scores_.data() + s, count_);
      });
      target_.assign(index(count_), T(0));
      double mass = 0;
      for (std::int64_t h = 0; h < heads; ++h) {
        T* row = scores_.data() + h * count_;
        T top, sum;
        if (in_.target_includes_sink) {
          top = in_.sinks(h), sum = T(1);
        } else {
          top = *std::max_element(row, row + count_) * T(in_.scale), sum = T(0);
        }
        kernels_.softmax_step(row, count_, T(in_.scale), top, sum);
        double own = 0;
        for (std::int64_t s = 0; s < count_; ++s) {
          target_[index(s)] += row[s] / sum;
          own += double(row[s]);
        }
        mass += own / double(sum);
      }
      return T(std::max(op::least_mass, mass));
    }

    /// estimate_ becomes I, index_dots_ the dot products behind it; returns the log-sum-exp of I.
    T estimates(std::int64_t t) {
      const std::int64_t heads = in_.index_q.extent[1], dim = in_.index_q.extent[2];
      index_dots_.resize(index(heads * count_));
      estimate_.resize(index(count_));
      tiles(in_.index_keys, [&](const T* keys, std::int64_t ld, std::int64_t s, std::int64_t n) {
        kernels_.gemm_nt(in_.index_q.data + t * in_.index_q.stride[0], in_.index_q.stride[1], heads, keys, ld,
                         n, dim, index_dots_.data() + s, count_);
      });
      kernels_.weighted_relu(in_.index_weights.data + t * in_.index_weights.stride[0], heads,
                             index_dots_.data(), count_, count_, estimate_.data());
      T top = -std::numeric_limits<T>::infinity();
      for (T& e : estimate_) e *= T(in_.index_scale), top = std::max(top, e);
      double sum = 0;
      for (T e : estimate_) sum += double(std::exp(e - top));
      return top + T(std::log(sum));
    }

    const typename op::inputs& in_;
    const detail::cpu_kernels<T>& kernels_ = detail::best_kernels<T>();
    std::int64_t count_ = 0;              ///< candidates
    std::vector<std::int64_t> rows_;      ///< their entries
    std::vector<T> scores_, index_dots_;  ///< (heads, candidates)
    std::vector<T> target_, estimate_;    ///< (candidates)
    std::vector<T> gathered_, product_;   ///< (tile, channels)
  };
};

}  // namespace dsv4
