// SPDX-License-Identifier: Apache-2.0
/// Sparse attention on host threads: an online softmax over tiles of keys that all heads share.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/cpu/sparse_attention_backward.hpp>
#include <dsv4/ops/sparse_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace dsv4 {

/// The output of a query depends on its candidate keys and their order only, bit for bit: tiles start at the
/// first window key and at the first compressed key, and gathered keys are copied, never rounded.
template <class T>
struct kernel<sparse_attention<T>, exec::cpu> {
  using op = sparse_attention<T>;

  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out,
                      const typename op::saved& keep) {
    const std::int64_t n = in.q.extent[0], heads = in.q.extent[1];
    if (n == 0 || heads == 0) return;
    // With fewer queries than threads the heads of a query are split as well.
    constexpr std::int64_t fewest = 6;
    const std::int64_t parts =
        std::clamp<std::int64_t>((p.threads() + n - 1) / n, 1, (heads + fewest - 1) / fewest);
    p.parallel_for(n * parts, 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<T> scratch(static_cast<std::size_t>(tile * (in.q.extent[2] + heads) + 2 * heads));
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t part = task % parts, h = heads * part / parts;
        query(in, out, keep, task / parts, h, heads * (part + 1) / parts - h, scratch.data());
      }
    });
  }

  static void backward(const exec::cpu& p, workspace& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    detail::sparse_attention_backward<T>::run(p, w, in, kept, up, g);
  }

 private:
  static constexpr std::int64_t tile = 64;  ///< keys that are scored at once

  /// Heads [h, h + heads) of query t.
  static void query(const typename op::inputs& in, const typename op::outputs& out,
                    const typename op::saved& keep, std::int64_t t, std::int64_t h, std::int64_t heads,
                    T* scratch) {
    const auto& kernels = detail::best_kernels<T>();
    const std::int64_t dim = in.q.extent[2], position = in.first_position + t;
    const T* q = in.q.data + t * in.q.stride[0] + h * in.q.stride[1];
    T* o = out.o.data + t * out.o.stride[0] + h * out.o.stride[1];
    const std::int64_t ldo = out.o.stride[1];
    T* gathered = scratch;
    T* scores = gathered + tile * dim;
    T* top = scores + tile * heads;
    T* sum = top + heads;
    for (std::int64_t i = 0; i < heads; ++i) {
      top[i] = in.sinks(h + i), sum[i] = T(1);  // the sink itself
      std::fill_n(o + i * ldo, dim, T(0));
    }

    const auto visit = [&](const T* keys, std::int64_t ld, std::int64_t count) {
      kernels.gemm_nt(q, in.q.stride[1], heads, keys, ld, count, dim, scores, tile);
      for (std::int64_t i = 0; i < heads; ++i) {
        const T factor = kernels.softmax_step(scores + i * tile, count, T(in.scale), top[i], sum[i]);
        if (factor != T(1))
          for (std::int64_t c = 0; c < dim; ++c) o[i * ldo + c] *= factor;
      }
      kernels.gemm_nn(scores, tile, heads, keys, ld, count, dim, o, ldo, true);
    };
    const auto visit_rows = [&](const matrix_view<const T>& rows, std::int64_t first, std::int64_t end) {
      for (std::int64_t j = first; j < end; j += tile)
        visit(rows.data + j * rows.stride[0], rows.stride[0], std::min(tile, end - j));
    };

    visit_rows(in.local, std::max<std::int64_t>(0, position - in.window + 1) - in.first_local,
               position + 1 - in.first_local);
    if (in.selected.data) {
      std::int64_t count = 0;
      for (std::int64_t j = 0; j < in.selected.extent[1]; ++j) {
        const std::int64_t row = in.selected(t, j);
        if (row < 0) continue;
        std::copy_n(in.compressed.data + row * in.compressed.stride[0], dim, gathered + count * dim);
        if (++count == tile) visit(gathered, dim, count), count = 0;
      }
      if (count > 0) visit(gathered, dim, count);
    } else if (in.ratio > 0) {
      visit_rows(in.compressed, 0, (position + 1) / in.ratio);
    }

    for (std::int64_t i = 0; i < heads; ++i) {
      for (std::int64_t c = 0; c < dim; ++c) o[i * ldo + c] /= sum[i];
      if (keep.lse.data) keep.lse(t, h + i) = top[i] + std::log(sum[i]);
    }
  }
};

}  // namespace dsv4
