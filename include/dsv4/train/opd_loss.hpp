// SPDX-License-Identifier: Apache-2.0
/// On-policy distillation: the reverse KL divergence to several teachers over the full vocabulary, from last
/// hidden states and heads, a tile of the vocabulary at a time.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/linear.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

namespace dsv4 {

/// What a pass over a row's logits x keeps: the largest, and e^(x - top) summed alone, times x, times m.
template <class T>
struct opd_statistics {
  T top = -std::numeric_limits<T>::infinity();
  T sum = 0, sum_x = 0, sum_m = 0;
  T log_sum() const { return top + std::log(sum); }
};

/// First pass over one tile of logits x. Updates the rows' statistics with x and, where m is given, with m.
/// Where `weight` is given, x is a teacher's: m[t, v] += weight[t] x[t, v].
template <class T, space S = space::host>
struct opd_accumulate {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> x;       // (N, n)
    vector_view<const T, S> weight;  // (N), or empty
  };
  struct outputs {
    matrix_view<T, S> m;                           // (N, n)
    vector_view<opd_statistics<T>, S> statistics;  // (N)
  };
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::dispatch<opd_accumulate>(p, in, out);
  }
};

/// Second pass: x[t, v] becomes scale pi (W (x - lse) - (m - c) - loss), with pi = e^(x - lse).
template <class T, space S = space::host>
struct opd_gradient {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> m;                // (N, n)
    vector_view<const T, S> lse, w, c, loss;  // (N) each
    T scale;
  };
  struct outputs {
    matrix_view<T, S> x;  // (N, n)
  };
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::dispatch<opd_gradient>(p, in, out);
  }
};

/// Between the passes, from statistics s of the student and q_i of teacher i, by rows:
///   lse = log_sum(s),   w = sum_i w_i,   c = sum_i w_i log_sum(q_i) over the teachers of weight,
///   losses = w (s.sum_x / s.sum - lse) - (s.sum_m / s.sum - c).
template <class T, space S = space::host>
struct opd_divergence {
  static constexpr space memory = S;
  struct inputs {
    vector_view<const opd_statistics<T>, S> student;   // (N)
    matrix_view<const opd_statistics<T>, S> teachers;  // (E, N)
    matrix_view<const T, S> weights;                   // (E, N), w_i
  };
  struct outputs {
    vector_view<T, S> losses, lse, w, c;  // (N) each
  };
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::dispatch<opd_divergence>(p, in, out);
  }
};

/// A teacher E_i: its last hidden states (after the final norm) of the student's tokens, kept instead of its
/// logits, its head, and how much each token listens to it; 0 where the prompt is not of its domain.
template <class T, space S = space::host>
struct opd_teacher {
  matrix_view<const T, S> hidden;  // (N, D_i)
  matrix_view<const T, S> head;    // (V, D_i)
  vector_view<const T, S> weight;  // (N), w_i
};

/// L = scale sum_t sum_i w_i[t] KL(pi_t || q_it): pi of the student's logits z = hidden head^T, q_i of
/// teacher i's. With lp = log pi, m = sum_i w_i log q_i, W = sum_i w_i and l = sum_v pi (W lp - m), per
/// token:
///   L = l,   dL/dz = pi (W lp - m - l).
/// Two passes over vocabulary tiles; memory is 2 N x tile numbers, whatever the vocabulary, and a few per
/// token and teacher. Source: report, equation 29. Heads are used one tile after the other in the order of
/// `teachers`.
template <class T, space S = space::host>
struct opd_loss {
  struct inputs {
    matrix_view<const T, S> hidden;  // (N, D), after the final norm
    matrix_view<const T, S> head;    // (V, D)
    std::span<const opd_teacher<T, S>> teachers;
    double scale = 1;          ///< 1 / the batch's tokens makes it a mean
    std::int64_t tile = 1024;  ///< columns of the vocabulary at a time
  };
  struct outputs {
    vector_view<T, S> losses;   // (N), l of every token, unscaled
    matrix_view<T, S> dhidden;  // (N, D), =, or empty
    matrix_view<T, S> dhead;    // (V, D), +=, or empty
  };

  /// Returns L, which is the host's: on a device this waits, once everything is queued.
  template <policy P>
  static double forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    const std::int64_t rows = in.hidden.extent[0], vocabulary = in.head.extent[0];
    const auto count = static_cast<std::int64_t>(in.teachers.size());
    check(in, out);
    const workspace_scope<S> scope(w);
    const std::int64_t tile = std::min(in.tile, vocabulary);
    const auto z = take<T>(w, rows, tile), m = take<T>(w, rows, tile);
    const auto student = take<opd_statistics<T>>(w, rows);
    const auto experts = take<opd_statistics<T>>(w, count, rows);
    const auto weights = take<T>(w, count, rows);
    const auto lse = take<T>(w, rows), total = take<T>(w, rows), c = take<T>(w, rows);
    fill(p, student, {});
    if (count > 0) fill(p, experts, {});
    for (std::int64_t i = 0; i < count; ++i)
      copy_values(p, in.teachers[static_cast<std::size_t>(i)].weight, weights[i]);

    // Calls body(v, n, z, m) for the n columns from v on: the student's logits, and m up to the teachers'
    // normalisation c, which the first pass finds too.
    const auto for_each_tile = [&](bool first, const auto& body) {
      for (std::int64_t v = 0; v < vocabulary; v += tile) {
        const std::int64_t n = std::min(tile, vocabulary - v);
        const matrix_view<T, S> logits(z.data, rows, n), sum(m.data, rows, n);
        fill(p, sum, T(0));
        for (std::int64_t i = 0; i < count; ++i) {
          const opd_teacher<T, S>& e = in.teachers[static_cast<std::size_t>(i)];
          linear<T, S>::forward(p, {e.hidden, e.head.rows(v, n)}, {logits});
          opd_accumulate<T, S>::forward(p, {logits, e.weight},
                                        {sum, first ? experts[i] : vector_view<opd_statistics<T>, S>{}});
        }
        linear<T, S>::forward(p, {in.hidden, in.head.rows(v, n)}, {logits});
        body(v, n, logits, sum);
      }
    };
    for_each_tile(true, [&](std::int64_t, std::int64_t, const auto& logits, const auto& sum) {
      opd_accumulate<T, S>::forward(p, {logits, {}}, {sum, student});
    });
    opd_divergence<T, S>::forward(p, {student, experts, weights}, {out.losses, lse, total, c});
    if (out.dhidden.data || out.dhead.data)
      for_each_tile(false, [&](std::int64_t v, std::int64_t n, const auto& logits, const auto& sum) {
        opd_gradient<T, S>::forward(p, {sum, lse, total, c, out.losses, T(in.scale)}, {logits});
        linear<T, S>::backward(
            p, w, {in.hidden, in.head.rows(v, n)}, {logits},
            {out.dhidden, out.dhead.data ? out.dhead.rows(v, n) : matrix_view<T, S>{}, v > 0});
      });
    double loss = 0;
    for (const T l : fetched(p, out.losses)) loss += double(l);
    return in.scale * loss;
  }

 private:
  static void check(const inputs& in, const outputs& out) {
    const std::int64_t rows = in.hidden.extent[0];
    expect(in.tile >= 1, "opd_loss", "tile", "at least 1", in.tile);
    expect(in.head.extent[0] >= 1, "opd_loss", "head rows", "at least 1", in.head.extent[0]);
    expect_extent("opd_loss", "head columns", in.head.extent[1], in.hidden.extent[1]);
    for (const auto& e : in.teachers) {
      expect_extent("opd_loss", "teacher hidden rows", e.hidden.extent[0], rows);
      expect_extent("opd_loss", "teacher head rows", e.head.extent[0], in.head.extent[0]);
      expect_extent("opd_loss", "teacher head columns", e.head.extent[1], e.hidden.extent[1]);
      expect_extent("opd_loss", "teacher weight", e.weight.extent[0], rows);
    }
    expect_extent("opd_loss", "losses", out.losses.extent[0], rows);
    detail::expect_gradient("opd_loss", "dhidden", out.dhidden, in.hidden);
    detail::expect_gradient("opd_loss", "dhead", out.dhead, in.head);
  }
};

template <class T>
struct kernel<opd_accumulate<T>, exec::reference> {
  using op = opd_accumulate<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < in.x.extent[0]; ++t)
      for (std::int64_t v = 0; v < in.x.extent[1]; ++v) {
        const T x = in.x(t, v);
        if (in.weight.data) out.m(t, v) += in.weight(t) * x;
        if (!out.statistics.data) continue;
        opd_statistics<T>& s = out.statistics(t);
        const T top = std::max(s.top, x), old = s.top == top ? T(1) : std::exp(s.top - top),
                e = std::exp(x - top);
        s.sum = s.sum * old + e;
        s.sum_x = s.sum_x * old + e * x;
        s.sum_m = s.sum_m * old + e * out.m(t, v);
        s.top = top;
      }
  }
};

template <class T>
struct kernel<opd_gradient<T>, exec::reference> {
  using op = opd_gradient<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < out.x.extent[0]; ++t)
      for (std::int64_t v = 0; v < out.x.extent[1]; ++v) {
        const T lp = out.x(t, v) - in.lse(t);
        out.x(t, v) = in.scale * std::exp(lp) * (in.w(t) * lp - (in.m(t, v) - in.c(t)) - in.loss(t));
      }
  }
};

template <class T>
struct kernel<opd_divergence<T>, exec::reference> {
  using op = opd_divergence<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    for (std::int64_t t = 0; t < in.student.extent[0]; ++t) {
      T weight = 0, shift = 0;
      for (std::int64_t i = 0; i < in.weights.extent[0]; ++i) {
        const T own = in.weights(i, t);
        weight += own;
        if (own != 0) shift += own * in.teachers(i, t).log_sum();
      }
      const opd_statistics<T>& s = in.student(t);
      out.lse(t) = s.log_sum(), out.w(t) = weight, out.c(t) = shift;
      out.losses(t) = weight * (s.sum_x / s.sum - out.lse(t)) - (s.sum_m / s.sum - shift);
    }
  }
};

/// A few operations a row: nothing to share out.
template <class T>
struct kernel<opd_divergence<T>, exec::cpu> : kernel<opd_divergence<T>, exec::reference> {};

template <class T>
struct kernel<opd_accumulate<T>, exec::cpu>;  // in train/cpu/opd_loss.hpp

template <class T>
struct kernel<opd_gradient<T>, exec::cpu>;  // in train/cpu/opd_loss.hpp

}  // namespace dsv4
