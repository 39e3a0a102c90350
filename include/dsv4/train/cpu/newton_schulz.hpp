// SPDX-License-Identifier: Apache-2.0
/// Newton-Schulz on host threads. Symmetric products compute one triangle and mirror it. Batches are spread
/// over the threads matrix by matrix, large matrices and the rest of a batch block by block.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/train/cpu/newton_schulz_bf16.hpp>
#include <dsv4/train/cpu/task_runner.hpp>
#include <dsv4/train/newton_schulz.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace dsv4 {
namespace detail {

/// 1 / (norm + epsilon). The norm is summed in double, row by row.
template <class T>
T newton_schulz_factor(matrix_view<const T> x, double epsilon) {
  double squares = 0;
  for (std::int64_t i = 0; i < x.extent[0]; ++i) {
    double lane[8] = {};
    const T* row = x.data + i * x.stride[0];
    std::int64_t j = 0;
    for (; j + 8 <= x.extent[1]; j += 8)
      for (int l = 0; l < 8; ++l) lane[l] += double(row[j + l]) * double(row[j + l]);
    for (int l = 0; j + l < x.extent[1]; ++l) lane[l] += double(row[j + l]) * double(row[j + l]);
    squares += ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
  }
  return static_cast<T>(1 / (std::sqrt(squares) + epsilon));
}

/// The iteration on one matrix of `n` rows and `m` >= n columns. Every element of a product is one chain of
/// fused multiply-adds, or one dot product of fixed order: blocks and threads do not change it.
template <class T>
class newton_schulz_iteration {
 public:
  using inputs = typename newton_schulz<T>::inputs;

  newton_schulz_iteration(const inputs& in, task_runner run, T* scratch)
      : in_(in),
        run_(run),
        form_(in.chosen_form()),
        n_(small(in)),
        m_(large(in)),
        ldx_(leading(m_)),
        lda_(leading(n_)) {
    for (T*& x : x_) x = std::exchange(scratch, scratch + n_ * ldx_);
    for (T*& a : a_) a = std::exchange(scratch, scratch + n_ * lda_);
  }

  static std::int64_t scratch(const inputs& in) {
    const std::int64_t n = small(in);
    return 2 * n * leading(large(in)) + 4 * n * leading(n);
  }

  void operator()(matrix_view<const T> from, matrix_view<T> to, T factor) {
    load(from, factor);
    if (form_ == newton_schulz_form::standard)
      standard();
    else
      gram();
    store(to);
  }

 private:
  static constexpr std::int64_t block = 64, depth = 512;
  static std::int64_t small(const inputs& in) { return std::min(in.x.extent[1], in.x.extent[2]); }
  static std::int64_t large(const inputs& in) { return std::max(in.x.extent[1], in.x.extent[2]); }
  /// Rows a cache line apart from a power of two: columns of a block must not share few cache sets.
  static std::int64_t leading(std::int64_t columns) { return (columns + 15) / 16 * 16 + 16; }
  std::int64_t block_rows() const { return n_ < 1024 ? 48 : 192; }

  T rounded(T v) const { return rounded_operand(v, in_.products, form_); }

  /// X = factor from, transposed when tall.
  void load(matrix_view<const T> from, T factor) {
    const bool tall = from.extent[0] > from.extent[1];
    for_strips(n_, [&](std::int64_t i0, std::int64_t i1) {
      if (!tall)
        for (std::int64_t i = i0; i < i1; ++i)
          for (std::int64_t j = 0; j < m_; ++j)
            x_[0][i * ldx_ + j] = rounded(from.data[i * from.stride[0] + j] * factor);
      else
        for (std::int64_t j0 = 0; j0 < m_; j0 += 16)
          for (std::int64_t i = i0; i < i1; ++i)
            for (std::int64_t j = j0; j < std::min(j0 + 16, m_); ++j)
              x_[0][i * ldx_ + j] = rounded(from.data[j * from.stride[0] + i] * factor);
    });
  }
  void store(matrix_view<T> to) {
    const bool tall = to.extent[0] > to.extent[1];
    for_strips(n_, [&](std::int64_t i0, std::int64_t i1) {
      if (!tall)
        for (std::int64_t i = i0; i < i1; ++i) std::copy_n(x_[0] + i * ldx_, m_, to.data + i * to.stride[0]);
      else
        for (std::int64_t j0 = 0; j0 < m_; j0 += 16)
          for (std::int64_t i = i0; i < i1; ++i)
            for (std::int64_t j = j0; j < std::min(j0 + 16, m_); ++j)
              to.data[j * to.stride[0] + i] = x_[0][i * ldx_ + j];
    });
  }

  void standard() {
    T *const gram = a_[0], *const polynomial = a_[1];
    for (const auto& [a, b, c] : in_.steps) {
      gram_matrix(gram);
      symmetric(polynomial, gram, gram, T(c), gram, T(b), T(0));
      apply(T(a), polynomial);
    }
  }

  void gram() {
    auto& [r, h, q, t] = a_;
    const std::size_t restart = in_.chosen_restart(), count = in_.steps.size();
    for (std::size_t k = 0; k < count; ++k) {
      const auto& [a, b, c] = in_.steps[k];
      const bool first = k % restart == 0, last = (k + 1) % restart == 0 || k + 1 == count;
      if (first) gram_matrix(r);
      symmetric(h, r, r, T(c), r, T(b), T(a));  // h = a I + b R + c R^2
      if (!last) {
        symmetric(t, h, r);
        symmetric(r, t, h);
      }
      if (first) {
        std::swap(q, h);
      } else {
        symmetric(t, q, h);
        std::swap(q, t);
      }
      if (last) apply(T(0), q);
    }
  }

  /// c = X X^T.
  void gram_matrix(T* c) {
    const auto& kernels = best_kernels<T>();
    for_triangle([&](std::int64_t i, std::int64_t rows, std::int64_t j, std::int64_t columns) {
      kernels.gemm_nt(x_[0] + i * ldx_, ldx_, rows, x_[0] + j * ldx_, ldx_, columns, m_, c + i * lda_ + j,
                      lda_);
    });
    mirror(c, [&](std::int64_t, std::int64_t, T v) { return v; });
  }

  /// c = alpha p q + beta d + gamma I, which is symmetric: p and q are polynomials of one symmetric matrix.
  void symmetric(T* c, const T* p, const T* q, T alpha = 1, const T* d = nullptr, T beta = 0, T gamma = 0) {
    for_triangle([&](std::int64_t i, std::int64_t rows, std::int64_t j, std::int64_t columns) {
      product(p + i * lda_, rows, q + j, columns, c + i * lda_ + j, lda_, lda_, false);
    });
    if (d)
      mirror(c, [&](std::int64_t i, std::int64_t j, T v) {
        return alpha * v + beta * d[i * lda_ + j] + (i == j ? gamma : T(0));
      });
    else
      mirror(c, [&](std::int64_t, std::int64_t, T v) { return v; });
  }

  /// X = a X + s X.
  void apply(T a, const T* s) {
    const std::int64_t rows_per = block_rows(), row_blocks = (n_ + rows_per - 1) / rows_per;
    const std::int64_t column_blocks = (m_ + block - 1) / block;
    run_(row_blocks * column_blocks, [&](std::int64_t task) {
      const std::int64_t i = task % row_blocks * rows_per, j = task / row_blocks * block;
      const std::int64_t rows = std::min(rows_per, n_ - i), columns = std::min(block, m_ - j);
      T* const to = x_[1] + i * ldx_ + j;
      if (a != 0)
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t k = 0; k < columns; ++k) to[r * ldx_ + k] = a * x_[0][(i + r) * ldx_ + j + k];
      product(s + i * lda_, rows, x_[0] + j, columns, to, ldx_, ldx_, a != 0);
      if (in_.products == newton_schulz_products::bf16)
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t k = 0; k < columns; ++k) to[r * ldx_ + k] = rounded(to[r * ldx_ + k]);
    });
    std::swap(x_[0], x_[1]);
  }

  /// c (+)= p q for a block of rows of an n x n matrix p and a block of columns of q.
  void product(const T* p, std::int64_t rows, const T* q, std::int64_t columns, T* c, std::int64_t ldq,
               std::int64_t ldc, bool add) const {
    for (std::int64_t k = 0; k < n_; k += depth)
      best_kernels<T>().gemm_nn(p + k, lda_, rows, q + k * ldq, ldq, std::min(depth, n_ - k), columns, c, ldc,
                                add || k > 0);
  }

  template <class Body>
  void for_strips(std::int64_t rows, const Body& body) const {
    constexpr std::int64_t height = 16;
    run_((rows + height - 1) / height,
         [&](std::int64_t strip) { body(strip * height, std::min(rows, (strip + 1) * height)); });
  }

  /// Calls body(i, rows, j, columns) for blocks that cover the lower triangle of an n x n matrix.
  template <class Body>
  void for_triangle(const Body& body) const {
    const std::int64_t rows_per = block_rows();
    std::int64_t tasks = 0;
    for (std::int64_t i = 0; i < n_; i += rows_per) tasks += (std::min(n_, i + rows_per) + block - 1) / block;
    run_(tasks, [&](std::int64_t task) {
      std::int64_t i = 0, end = 0;
      for (;; i += rows_per) {
        end = std::min(n_, i + rows_per);
        const std::int64_t blocks = (end + block - 1) / block;
        if (task < blocks) break;
        task -= blocks;
      }
      const std::int64_t j = task * block;
      body(i, end - i, j, std::min(block, end - j));
    });
  }

  /// Both triangles of c become value(i, j, c_ij) of the lower one, rounded as products are.
  template <class Value>
  void mirror(T* c, const Value& value) const {
    constexpr std::int64_t tile = 16;
    for_strips(n_, [&](std::int64_t i0, std::int64_t i1) {
      for (std::int64_t j0 = 0; j0 < i1; j0 += tile)
        for (std::int64_t i = i0; i < i1; ++i) {
          const std::int64_t end = std::min(j0 + tile, i + 1);
          T* const row = c + i * lda_;
          for (std::int64_t j = j0; j < end; ++j) row[j] = rounded(value(i, j, row[j]));
          for (std::int64_t j = j0; j < end; ++j) c[j * lda_ + i] = row[j];
        }
    });
  }

  const inputs& in_;
  task_runner run_;
  newton_schulz_form form_;
  std::int64_t n_, m_, ldx_, lda_;
  T* x_[2];  // X and the next X
  T* a_[4];  // n x n
};

}  // namespace detail

template <class T>
struct kernel<newton_schulz<T>, exec::cpu> {
  using op = newton_schulz<T>;

  static std::int64_t scratch(const exec::cpu& p, const typename op::inputs& in) {
    return with_iteration(in,
                          [&]<class I>(std::type_identity<I>) { return I::scratch(in) * at_once<I>(p, in); });
  }

  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<T>& scratch) {
    with_iteration(in, [&]<class I>(std::type_identity<I>) {
      const auto one = [&](detail::task_runner run, std::int64_t slot, std::int64_t b) {
        I(in, run, scratch.data + slot * I::scratch(in))
        (in.x[b], out.y[b], detail::newton_schulz_factor<T>(in.x[b], in.epsilon));
      };
      const std::int64_t slots = at_once<I>(p, in), each = in.x.extent[0] / slots;
      if (slots > 1)
        p.parallel_for(slots, 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t slot = begin; slot < end; ++slot)
            for (std::int64_t b = slot * each; b < (slot + 1) * each; ++b) one({nullptr}, slot, b);
        });
      for (std::int64_t b = slots > 1 ? slots * each : 0; b < in.x.extent[0]; ++b) one({&p}, 0, b);
    });
  }

 private:
  /// Calls f with the class that iterates: the bf16 instruction's where it is asked for and there.
  template <class F>
  static auto with_iteration(const typename op::inputs& in, const F& f) {
#if DSV4_X86_KERNELS
    if constexpr (std::is_same_v<T, float>)
      if (in.products == newton_schulz_products::bf16 && in.chosen_form() == newton_schulz_form::standard &&
          detail::newton_schulz_avx512::supported())
        return f(std::type_identity<detail::newton_schulz_avx512::iteration>{});
#endif
    return f(std::type_identity<detail::newton_schulz_iteration<T>>{});
  }

  /// How many matrices are worked on side by side: one to a thread while they fit its caches.
  template <class I>
  static std::int64_t at_once(const exec::cpu& p, const typename op::inputs& in) {
    constexpr std::int64_t most_bytes = std::int64_t{8} << 20;
    const bool fits = I::scratch(in) * std::int64_t{sizeof(T)} <= most_bytes;
    return fits ? std::clamp<std::int64_t>(in.x.extent[0], 1, p.threads()) : 1;
  }
};

}  // namespace dsv4
