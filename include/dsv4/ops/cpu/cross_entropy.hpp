// SPDX-License-Identifier: Apache-2.0
/// Cross-entropy on host threads: tiles of logits by the library's products, an online softmax over them.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/cpu/linear.hpp>
#include <dsv4/ops/cross_entropy.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace dsv4 {
template <class T, class W>
struct kernel<cross_entropy<T, space::host, W>, exec::cpu> {
  using op = cross_entropy<T, space::host, W>;
  using product = linear<T, space::host, W>;

  static void forward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                      const typename op::outputs& out, const typename op::saved& keep) {
    op::check_targets(in);
    forward_tiles(p, w, in, {}, out, keep);
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    op::check_targets(in);
    backward_tiles(p, w, in, {}, kept, up, g);
  }

  /// Tiles of rows go through both passes one after the other, in the order of either pass alone.
  static void forward_backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                               const typename op::outputs& out, const typename op::upstream& up,
                               const typename op::gradients& g) {
    op::check_targets(in);
    workspace::scope scope(w);
    const std::int64_t n = in.hidden.extent[0], vocabulary = in.head.extent[0];
    const auto lse = w.take<T>(n);
    const std::int64_t most = std::min(n, most_rows);
    if (most * vocabulary > most_kept_bytes / std::int64_t{sizeof(T)}) {
      forward_tiles(p, w, in, {}, out, {lse});
      backward_tiles(p, w, in, {}, {lse}, up, g);
      return;
    }
    const auto logits = w.take<T>(most * vocabulary);
    for (std::int64_t t0 = 0; t0 < n; t0 += most_rows) {
      const std::int64_t rows = std::min(most_rows, n - t0);
      const auto part = [&](const auto& v) { return v.rows(t0, rows); };
      const typename op::inputs tile{in.hidden.rows(t0, rows), in.head, part(in.targets)};
      forward_tiles(p, w, tile, logits, {part(out.loss)}, {part(lse)});
      backward_tiles(p, w, tile, logits, {part(lse)}, {part(up.dloss)},
                     {g.dhidden.data ? g.dhidden.rows(t0, rows) : matrix_view<T>(), g.dhead});
    }
  }

 private:
  static constexpr std::int64_t most_rows = 1024, most_columns = 1024;  ///< of a tile
  static constexpr std::int64_t rows_at_once = 8;
  static constexpr std::int64_t most_kept_bytes = std::int64_t{64} << 20;  ///< of logits between the passes

  /// Leaves the logits of all tiles in `logits`, unless that is empty.
  static void forward_tiles(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                            const vector_view<T>& logits, const typename op::outputs& out,
                            const typename op::saved& keep) {
    const auto& kernels = detail::best_kernels<T>();
    workspace::scope scope(w);
    const std::int64_t n = in.hidden.extent[0];
    const auto top = w.take<T>(n), sum = w.take<T>(n), target = w.take<T>(n);
    std::fill_n(top.data, n, -std::numeric_limits<T>::infinity());
    std::fill_n(sum.data, n, T(0));
    std::fill_n(target.data, n, T(0));
    for_each_tile(p, w, in, logits, false, [&](std::int64_t t0, std::int64_t v0, const matrix_view<T>& z) {
      p.parallel_for(z.extent[0], rows_at_once, [&](std::int64_t begin, std::int64_t end) {
        T copy[most_columns];  // of a row whose logits stay
        for (std::int64_t r = begin; r < end; ++r) {
          const std::int64_t t = t0 + r, v = in.targets(t) - v0, columns = z.extent[1];
          if (v >= 0 && v < columns) target(t) = z(r, v);
          T* row = &z(r, 0);
          if (logits.data) std::copy_n(row, columns, copy), row = copy;
          kernels.softmax_step(row, columns, T(1), top(t), sum(t));
        }
      });
    });
    for (std::int64_t t = 0; t < n; ++t) {
      const T lse = top(t) + std::log(sum(t));
      if (keep.lse.data) keep.lse(t) = lse;
      out.loss(t) = in.targets(t) < 0 ? T(0) : lse - target(t);
    }
  }

  /// Takes the logits from `logits`, and overwrites them, unless that is empty.
  static void backward_tiles(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                             const vector_view<T>& logits, const typename op::saved& kept,
                             const typename op::upstream& up, const typename op::gradients& g) {
    const auto& kernels = detail::best_kernels<T>();
    for_each_tile(p, w, in, logits, true, [&](std::int64_t t0, std::int64_t v0, const matrix_view<T>& z) {
      const std::int64_t rows = z.extent[0], columns = z.extent[1];
      p.parallel_for(rows, rows_at_once, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          T* const dz = &z(r, 0);
          const std::int64_t t = t0 + r, v = in.targets(t) - v0;
          if (in.targets(t) < 0) {
            std::fill_n(dz, columns, T(0));
            continue;
          }
          T top = kept.lse(t), sum = T(0);
          kernels.softmax_step(dz, columns, T(1), top, sum);
          for (std::int64_t c = 0; c < columns; ++c) dz[c] *= up.dloss(t);
          if (v >= 0 && v < columns) dz[v] -= up.dloss(t);
        }
      });
      const auto hidden = in.hidden.rows(t0, rows);
      product::backward(p, w, {hidden, in.head.rows(v0, columns)}, {z},
                        {g.dhidden.data ? g.dhidden.rows(t0, rows) : matrix_view<T>(),
                         g.dhead.data ? g.dhead.rows(v0, columns) : matrix_view<T>(), v0 > 0});
    });
  }

  /// Calls visit(t0, v0, z) with the tile of logits of the rows from t0 on and the tokens from v0 on. The
  /// tiles of at most most_rows rows lie one after the other in `logits`, `ready` or to be computed; without
  /// it there is one at a time.
  template <class Visit>
  static void for_each_tile(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                            const vector_view<T>& logits, bool ready, const Visit& visit) {
    const std::int64_t n = in.hidden.extent[0], vocabulary = in.head.extent[0];
    workspace::scope scope(w);
    const auto storage =
        logits.data ? logits : w.take<T>(std::min(n, most_rows) * std::min(vocabulary, most_columns));
    for (std::int64_t t0 = 0; t0 < n; t0 += most_rows)
      for (std::int64_t v0 = 0; v0 < vocabulary; v0 += most_columns) {
        const std::int64_t rows = std::min(most_rows, n - t0),
                           columns = std::min(most_columns, vocabulary - v0);
        const auto z = storage.rows(logits.data ? rows * v0 : 0, rows * columns).reshape(rows, columns);
        if (!logits.data || !ready)
          product::forward(p, {in.hidden.rows(t0, rows), in.head.rows(v0, columns)}, {z});
        visit(t0, v0, z);
      }
  }
};

}  // namespace dsv4
