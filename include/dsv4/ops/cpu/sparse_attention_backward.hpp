// SPDX-License-Identifier: Apache-2.0
/// The backward of sparse attention on host threads: scores are recomputed tile by tile from the saved
/// log-sum-exp, for blocks of queries that share their keys.
#pragma once

#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/sparse_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace dsv4::detail {

/// Queries are cut into groups, a matter of their number only. A group adds up the gradients of the keys that
/// it sees in buffers of its own; these are then added in the order of groups. Memory is linear in the
/// queries: (N + groups window) D for window keys, at most groups E D for entries.
template <class T>
struct sparse_attention_backward {
  using op = sparse_attention<T>;

  static void run(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                  const typename op::saved& kept, const typename op::upstream& up,
                  const typename op::gradients& g) {
    const std::int64_t n = in.q.extent[0], heads = in.q.extent[1], dim = in.q.extent[2];
    workspace::scope scope(w);
    const std::int64_t count = n == 0 ? 0 : std::clamp<std::int64_t>(n / 16, 1, most_groups);
    std::vector<group> groups(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      group& own = groups[static_cast<std::size_t>(i)];
      own.begin = n * i / count, own.end = n * (i + 1) / count;
      own.first_local = window_begin(in, own.begin);
      own.locals = g.dlocal.data ? in.first_position + own.end - in.first_local - own.first_local : 0;
      own.entries = !g.dcompressed.data ? 0
                    : in.selected.data  ? in.compressed.extent[0]
                                        : visible(in, own.end - 1);
      own.dlocal = w.take<T>(own.locals, dim).data;
      own.dentries = w.take<T>(own.entries, dim).data;
      own.dsinks = w.take<T>(heads).data;
    }
    p.parallel_for(count, 1, [&](std::int64_t first, std::int64_t last) {
      block b(in, kept, up, g);
      for (std::int64_t i = first; i < last; ++i) b.run(groups[static_cast<std::size_t>(i)]);
    });

    // Sums over groups, in their order.
    const auto add_rows = [&](const matrix_view<T>& to, const auto& source) {
      p.parallel_for(to.extent[0], 1 + 4096 / (dim + 1), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          T* sum = to.data + r * to.stride[0];
          std::fill_n(sum, dim, T(0));
          for (const group& own : groups)
            if (const T* part = source(own, r))
              for (std::int64_t c = 0; c < dim; ++c) sum[c] += part[c];
        }
      });
    };
    if (g.dlocal.data)
      add_rows(g.dlocal, [&](const group& own, std::int64_t r) -> const T* {
        const std::int64_t at = r - own.first_local;
        return at >= 0 && at < own.locals ? own.dlocal + at * dim : nullptr;
      });
    if (g.dcompressed.data)
      add_rows(g.dcompressed, [&](const group& own, std::int64_t r) -> const T* {
        return r < own.entries ? own.dentries + r * dim : nullptr;
      });
    for (std::int64_t h = 0; h < g.dsinks.extent[0]; ++h) {
      T sum = 0;
      for (const group& own : groups) sum += own.dsinks[h];
      g.dsinks(h) += sum;
    }
  }

 private:
  static constexpr std::int64_t most_groups = 32;
  static constexpr std::int64_t tile = 64;         ///< keys that are scored at once
  static constexpr std::int64_t block_rows = 128;  ///< query heads that are scored at once, about

  struct group {
    std::int64_t begin, end;           ///< queries
    std::int64_t first_local, locals;  ///< rows of `local` that they see
    std::int64_t entries;              ///< compressed entries that they may see, from 0 on
    T *dlocal, *dentries, *dsinks;
  };

  /// The first row of `local` that query t sees.
  static std::int64_t window_begin(const typename op::inputs& in, std::int64_t t) {
    return std::max<std::int64_t>(0, in.first_position + t - in.window + 1) - in.first_local;
  }
  static std::int64_t visible(const typename op::inputs& in, std::int64_t t) {
    return in.ratio > 0 ? (in.first_position + t + 1) / in.ratio : 0;
  }

  /// One thread's work: queries [t0, t1) with all their heads, as rows of matrices.
  class block {
   public:
    block(const typename op::inputs& in, const typename op::saved& kept, const typename op::upstream& up,
          const typename op::gradients& g)
        : in_(in),
          kept_(kept),
          up_(up),
          g_(g),
          heads_(in.q.extent[1]),
          dim_(in.q.extent[2]),
          most_(std::clamp<std::int64_t>(block_rows / std::max<std::int64_t>(heads_, 1), 1, 16)) {
      const std::int64_t rows = most_ * heads_;
      scratch_.resize(static_cast<std::size_t>(3 * rows * dim_ + 2 * rows * tile + rows + 2 * tile * dim_));
      q_ = scratch_.data();
      d_ = q_ + rows * dim_;
      dq_ = d_ + rows * dim_;
      s_ = dq_ + rows * dim_;
      ds_ = s_ + rows * tile;
      delta_ = ds_ + rows * tile;
      keys_ = delta_ + rows;
      dkeys_ = keys_ + tile * dim_;
    }

    void run(const group& own) {
      std::fill_n(own.dlocal, own.locals * dim_, T(0));
      std::fill_n(own.dentries, own.entries * dim_, T(0));
      std::fill_n(own.dsinks, heads_, T(0));
      for (std::int64_t t = own.begin; t < own.end; t += most_) queries(own, t, std::min(own.end, t + most_));
    }

   private:
    void queries(const group& own, std::int64_t t0, std::int64_t t1) {
      load(own, t0, t1);
      T* const dlocal = own.locals ? own.dlocal : nullptr;
      T* const dentries = own.entries ? own.dentries : nullptr;
      const auto ld = in_.local.stride[0];
      for (std::int64_t j = window_begin(in_, t0), end = in_.first_position + t1 - in_.first_local; j < end;
           j += tile)
        visit(t0, t1, in_.local.data + j * ld, ld, std::min(tile, end - j),
              dlocal ? dlocal + (j - own.first_local) * dim_ : nullptr, [&](std::int64_t t) {
                return range{window_begin(in_, t) - j, in_.first_position + t + 1 - in_.first_local - j};
              });
      if (in_.selected.data) {
        for (std::int64_t t = t0; t < t1; ++t) selected(t0, t, dentries);
      } else if (in_.ratio > 0) {
        const auto lde = in_.compressed.stride[0];
        for (std::int64_t j = 0, end = visible(in_, t1 - 1); j < end; j += tile)
          visit(t0, t1, in_.compressed.data + j * lde, lde, std::min(tile, end - j),
                dentries ? dentries + j * dim_ : nullptr, [&](std::int64_t t) {
                  return range{0, visible(in_, t) - j};
                });
      }
      if (!g_.dq.data) return;
      for (std::int64_t t = t0; t < t1; ++t)
        for (std::int64_t h = 0; h < heads_; ++h) {
          const T* from = dq_ + ((t - t0) * heads_ + h) * dim_;
          T* to = g_.dq.data + t * g_.dq.stride[0] + h * g_.dq.stride[1];
          for (std::int64_t c = 0; c < dim_; ++c) to[c] = T(in_.scale) * from[c];
        }
    }

    /// Rows of scaled queries and of do, their delta, and the gradient of the sinks.
    void load(const group& own, std::int64_t t0, std::int64_t t1) {
      for (std::int64_t t = t0; t < t1; ++t)
        for (std::int64_t h = 0; h < heads_; ++h) {
          const std::int64_t r = (t - t0) * heads_ + h;
          const T* q = in_.q.data + t * in_.q.stride[0] + h * in_.q.stride[1];
          const T* d = up_.do_.data + t * up_.do_.stride[0] + h * up_.do_.stride[1];
          const T* o = kept_.o.data + t * kept_.o.stride[0] + h * kept_.o.stride[1];
          T lane[8] = {};
          for (std::int64_t c = 0; c < dim_; ++c) {
            q_[r * dim_ + c] = T(in_.scale) * q[c];
            d_[r * dim_ + c] = d[c];
            lane[c % 8] += d[c] * o[c];
          }
          delta_[r] =
              ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
          own.dsinks[h] -= std::exp(in_.sinks(h) - kept_.lse(t, h)) * delta_[r];
        }
      std::fill_n(dq_, (t1 - t0) * heads_ * dim_, T(0));
    }

    struct range {
      std::int64_t begin, end;  ///< keys of a tile that a query sees; may lie outside of the tile
    };

    /// A tile of keys that queries [t0, t1) share, query t those in seen(t).
    template <class Seen>
    void visit(std::int64_t t0, std::int64_t t1, const T* keys, std::int64_t ld, std::int64_t count, T* dkeys,
               const Seen& seen) {
      scores(0, (t1 - t0) * heads_, keys, ld, count);
      for (std::int64_t t = t0; t < t1; ++t) {
        const range all = seen(t);
        const std::int64_t begin = std::clamp<std::int64_t>(all.begin, 0, count);
        const std::int64_t end = std::clamp<std::int64_t>(all.end, begin, count);
        for (std::int64_t h = 0; h < heads_; ++h) weights((t - t0) * heads_ + h, t, h, begin, end, count);
      }
      add(0, (t1 - t0) * heads_, keys, ld, count, dkeys);
    }

    /// The selected entries of query t, gathered tile by tile.
    void selected(std::int64_t t0, std::int64_t t, T* dentries) {
      const std::int64_t row = (t - t0) * heads_;
      std::int64_t entry[tile], count = 0;
      const auto flush = [&] {
        if (count == 0) return;
        scores(row, heads_, keys_, dim_, count);
        for (std::int64_t h = 0; h < heads_; ++h) weights(row + h, t, h, 0, count, count);
        if (dentries) std::fill_n(dkeys_, count * dim_, T(0));
        add(row, heads_, keys_, dim_, count, dentries ? dkeys_ : nullptr);
        for (std::int64_t j = 0; dentries && j < count; ++j) {
          T* to = dentries + entry[j] * dim_;
          for (std::int64_t c = 0; c < dim_; ++c) to[c] += dkeys_[j * dim_ + c];
        }
        count = 0;
      };
      for (std::int64_t j = 0; j < in_.selected.extent[1]; ++j) {
        const std::int64_t e = in_.selected(t, j);
        if (e < 0) continue;
        std::copy_n(in_.compressed.data + e * in_.compressed.stride[0], dim_, keys_ + count * dim_);
        entry[count] = e;
        if (++count == tile) flush();
      }
      flush();
    }

    void scores(std::int64_t row, std::int64_t rows, const T* keys, std::int64_t ld, std::int64_t count) {
      kernels_.gemm_nt(q_ + row * dim_, dim_, rows, keys, ld, count, dim_, s_ + row * tile, tile);
      kernels_.gemm_nt(d_ + row * dim_, dim_, rows, keys, ld, count, dim_, ds_ + row * tile, tile);
    }

    /// Scores of row r become weights and their gradients, 0 outside of [begin, end).
    void weights(std::int64_t r, std::int64_t t, std::int64_t h, std::int64_t begin, std::int64_t end,
                 std::int64_t count) {
      T* s = s_ + r * tile;
      T* ds = ds_ + r * tile;
      std::fill(s, s + begin, T(0)), std::fill(ds, ds + begin, T(0));
      if (begin < end)
        kernels_.softmax_gradient(s + begin, ds + begin, end - begin, kept_.lse(t, h), delta_[r]);
      std::fill(s + end, s + count, T(0)), std::fill(ds + end, ds + count, T(0));
    }

    /// dq += ds k,   dk += p^T do + ds^T q
    void add(std::int64_t row, std::int64_t rows, const T* keys, std::int64_t ld, std::int64_t count,
             T* dkeys) {
      const T* s = s_ + row * tile;
      const T* ds = ds_ + row * tile;
      if (g_.dq.data) kernels_.gemm_nn(ds, tile, rows, keys, ld, count, dim_, dq_ + row * dim_, dim_, true);
      if (!dkeys) return;
      kernels_.gemm_tn(s, tile, count, d_ + row * dim_, dim_, rows, dim_, dkeys, dim_, true);
      kernels_.gemm_tn(ds, tile, count, q_ + row * dim_, dim_, rows, dim_, dkeys, dim_, true);
    }

    const typename op::inputs& in_;
    const typename op::saved& kept_;
    const typename op::upstream& up_;
    const typename op::gradients& g_;
    const cpu_kernels<T>& kernels_ = best_kernels<T>();
    std::int64_t heads_, dim_, most_;
    std::vector<T> scratch_;
    T *q_, *d_, *dq_;   ///< (rows, D): scaled queries, gradients of outputs, of queries
    T *s_, *ds_;        ///< (rows, tile): scores, then weights; do . k, then gradients of scores
    T* delta_;          ///< (rows)
    T *keys_, *dkeys_;  ///< (tile, D): gathered entries and their gradients
  };
};

}  // namespace dsv4::detail
