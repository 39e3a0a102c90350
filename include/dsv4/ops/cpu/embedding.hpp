// SPDX-License-Identifier: Apache-2.0
/// The embedding on host threads: rows are copied in parallel; gradients are added up column by column, so
/// that no two threads meet in a row of the table.
#pragma once

#include <dsv4/ops/embedding.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4 {
template <class T, class W>
struct kernel<embedding<T, space::host, W>, exec::cpu> {
  using op = embedding<T, space::host, W>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = out.x.extent[1], width = out.x.extent[2];
    p.parallel_for(out.x.extent[0], 1 + 16384 / (n * width + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t id = op::checked_token(in, t);
        for (std::int64_t i = 0; i < n; ++i) {
          T* x = out.x.data + t * out.x.stride[0] + i * out.x.stride[1];
          if (i == 0)
            for (std::int64_t c = 0; c < width; ++c) x[c] = T(widen(in.table(id, c)));
          else
            std::copy_n(out.x.data + t * out.x.stride[0], width, x);
        }
      }
    });
  }

  static void backward(const exec::cpu& p, workspace&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    const std::int64_t rows = up.dx.extent[0], n = up.dx.extent[1], width = up.dx.extent[2];
    for (std::int64_t t = 0; t < rows; ++t) op::checked_token(in, t);  // before anything is written
    constexpr std::int64_t block = 16;                                 // columns: a cache line of float
    p.parallel_for((width + block - 1) / block, 1 + 2048 / (rows * n + 1),
                   [&](std::int64_t first, std::int64_t last) {
                     const std::int64_t begin = first * block, end = std::min(width, last * block);
                     for (std::int64_t t = 0; t < rows; ++t) {
                       T* to = g.dtable.data + in.tokens(t) * g.dtable.stride[0];
                       for (std::int64_t i = 0; i < n; ++i) {
                         const T* dx = up.dx.data + t * up.dx.stride[0] + i * up.dx.stride[1];
                         for (std::int64_t c = begin; c < end; ++c) to[c] += dx[c];
                       }
                     }
                   });
  }
};

}  // namespace dsv4
