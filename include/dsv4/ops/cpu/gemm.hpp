// SPDX-License-Identifier: Apache-2.0
/// Threaded matrix products whose every output element has the same bits whatever the number of rows, the
/// row's place among them and the number of threads.
#pragma once

#include <dsv4/exec/cpu.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>
#include <dsv4/tensor/buffer.hpp>
#if !DSV4_COMPILED_KERNELS
#include <dsv4/ops/cpu/gemm_dispatch.hpp>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsv4::detail {

/// One product y[rows, o] = x[rows, k] w[o, k]^T of several that share o and k.
template <class T>
struct dense_problem {
  const T* x;
  std::int64_t ldx, rows;
  const T* w;
  std::int64_t ldw;
  T* y;
  std::int64_t ldy;
};

/// The rows of x that for_each_block gives to a kernel at once, at most.
inline constexpr std::int64_t most_block_rows = 192;

/// Calls body(i, n0, n, o0, width) for blocks of `n` rows of x and `width` rows of w that cover `count`
/// products of rows(i) x `o`, spread over the threads. `at_once` rows of x cost a kernel as much as one.
template <class Rows, class Body>
void for_each_block(const exec::cpu& p, std::int64_t count, std::int64_t o, std::int64_t k, const Rows& rows,
                    const Body& body, std::int64_t at_once = 1) {
  // A block of w, 64 rows of one chunk, stays in the second-level cache while the x rows of the block pass.
  // Those begin at a multiple of what a kernel takes at once, six where it works in registers.
  const std::int64_t multiple = at_once == 1 ? 6 : at_once;
  std::vector<std::int64_t> first(static_cast<std::size_t>(count) + 1, 0);  // the first task of each product
  const auto row_blocks = [](std::int64_t n) { return (n + most_block_rows - 1) / most_block_rows; };
  // Few rows leave few blocks, which must suffice for the threads; what a block prepares of x it does once.
  const std::int64_t narrow = o >= 512 * std::int64_t{p.threads()} ? 64 : 16;
  const auto width = [&](std::int64_t n) -> std::int64_t {
    return n <= at_once ? narrow : n <= 16 ? 16 : 64;
  };
  std::int64_t all_rows = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t n = rows(i);
    first[static_cast<std::size_t>(i) + 1] =
        first[static_cast<std::size_t>(i)] + row_blocks(n) * ((o + width(n) - 1) / width(n));
    all_rows += n;
  }
  const std::int64_t tasks = first.back();
  if (tasks == 0) return;
  const std::int64_t work = all_rows * o * std::max<std::int64_t>(k, 1) / tasks;  // multiply-adds per task
  p.parallel_for(tasks, 1 + (std::int64_t{1} << 16) / std::max<std::int64_t>(work, 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   auto i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
                   for (std::int64_t task = begin; task < end; ++task) {
                     while (task >= first[static_cast<std::size_t>(i) + 1]) ++i;
                     const std::int64_t within = task - first[static_cast<std::size_t>(i)];
                     const std::int64_t blocks = row_blocks(rows(i));
                     const std::int64_t height =
                         ((rows(i) + blocks - 1) / blocks + multiple - 1) / multiple * multiple;
                     const std::int64_t n0 = within % blocks * height, o0 = within / blocks * width(rows(i));
                     const std::int64_t n = std::min(height, rows(i) - n0);
                     if (n > 0) body(i, n0, n, o0, std::min(width(rows(i)), o - o0));
                   }
                 });
}

/// What describe(i) says of each of `count` products.
template <class Problem, class Describe>
std::vector<Problem> described(std::int64_t count, const Describe& describe) {
  std::vector<Problem> problems(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) problems[static_cast<std::size_t>(i)] = describe(i);
  return problems;
}

template <class T>
void gemm_nt(const exec::cpu& p, std::int64_t o, std::int64_t k,
             const std::vector<dense_problem<T>>& problems) {
  const auto& kernels = best_kernels<T>();
  for_each_block(
      p, static_cast<std::int64_t>(problems.size()), o, k,
      [&](std::int64_t i) { return problems[static_cast<std::size_t>(i)].rows; },
      [&](std::int64_t i, std::int64_t n0, std::int64_t n, std::int64_t o0, std::int64_t width) {
        const dense_problem<T>& g = problems[static_cast<std::size_t>(i)];
        kernels.gemm_nt(g.x + n0 * g.ldx, g.ldx, n, g.w + o0 * g.ldw, g.ldw, width, k, g.y + n0 * g.ldy + o0,
                        g.ldy, n0 + n < g.rows ? 0 : width);
      });
}

/// Computes `count` products, problem(i) describing each.
template <class T, class Problem>
void gemm_nt(const exec::cpu& p, std::int64_t count, std::int64_t o, std::int64_t k, const Problem& problem) {
  gemm_nt(p, o, k, described<dense_problem<T>>(count, problem));
}

/// One product c[m, n] (+)= op(a) b of several that share n: a is [m, k] or, when transposed, [k, m].
template <class T>
struct outer_problem {
  const T* a;
  std::int64_t lda, m, k;
  const T* b;
  std::int64_t ldb;
  T* c;
  std::int64_t ldc;
};

/// An element's bits depend on its row of op(a), its column of b and what c held, not on the blocks.
template <bool Transposed, class T>
void gemm_outer(const exec::cpu& p, std::int64_t n, bool add, const std::vector<outer_problem<T>>& problems) {
  const auto& kernels = best_kernels<T>();
  const auto problem = [&](std::int64_t i) -> const outer_problem<T>& {
    return problems[static_cast<std::size_t>(i)];
  };
  const auto count = static_cast<std::int64_t>(problems.size());
  const auto blocks_of = [](std::int64_t extent, std::int64_t most) { return (extent + most - 1) / most; };
  std::vector<std::int64_t> first(static_cast<std::size_t>(count) + 1, 0);  // the first task of each product
  std::int64_t width = 8 * outer_width, work = 0;
  for (;; width /= 2) {  // narrower blocks where they would be too few for the threads
    work = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const outer_problem<T>& g = problem(i);
      const bool none = add && g.k == 0;
      first[static_cast<std::size_t>(i) + 1] =
          first[static_cast<std::size_t>(i)] + (none ? 0 : blocks_of(g.m, outer_block) * blocks_of(n, width));
      work += g.m * n * std::max<std::int64_t>(g.k, 1);
    }
    if (width == 64 || first.back() >= 12 * p.threads()) break;
  }
  const std::int64_t tasks = first.back();
  if (tasks == 0) return;
  struct place {
    std::int64_t i0, m, j0;
  };
  // The block of a task; `of` is the product of an earlier task and becomes that of this one.
  const auto place_of = [&](std::int64_t task, std::int64_t& of) {
    while (task >= first[static_cast<std::size_t>(of) + 1]) ++of;
    const std::int64_t within = task - first[static_cast<std::size_t>(of)], all = problem(of).m;
    const std::int64_t blocks = blocks_of(all, outer_block);
    // Blocks of equal height, in whole register tiles.
    const std::int64_t height = (blocks_of(all, blocks) + 5) / 6 * 6, i0 = within % blocks * height;
    return place{i0, std::min(height, all - i0), within / blocks * width};
  };
  p.parallel_for(tasks, 1 + (std::int64_t{1} << 16) / std::max<std::int64_t>(work / tasks, 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   // Kept between calls: fresh memory of this size costs page faults every time.
                   thread_local buffer<T> scratch(outer_scratch);
                   auto i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
                   for (std::int64_t task = begin; task < end; ++task) {
                     const place at = place_of(task, i);
                     if (at.m <= 0) continue;
                     outer_next<T> next;
                     if (task + 1 < end) {
                       std::int64_t of = i;
                       const place then = place_of(task + 1, of);
                       const outer_problem<T>& h = problem(of);
                       next = {h.b + then.j0, h.c + then.i0 * h.ldc + then.j0, h.ldb, h.k, h.ldc, then.m};
                     }
                     const outer_problem<T>& g = problem(i);
                     const T* const a = Transposed ? g.a + at.i0 : g.a + at.i0 * g.lda;
                     kernels.block(Transposed, a, g.lda, at.m, g.b + at.j0, g.ldb, g.k,
                                   std::min(width, n - at.j0), g.c + at.i0 * g.ldc + at.j0, g.ldc, add,
                                   scratch.data(), next);
                   }
                 });
}

/// Computes `count` products, problem(i) describing each.
template <bool Transposed, class T, class Problem>
void gemm_outer(const exec::cpu& p, std::int64_t count, std::int64_t n, bool add, const Problem& problem) {
  gemm_outer<Transposed>(p, n, add, described<outer_problem<T>>(count, problem));
}

}  // namespace dsv4::detail
