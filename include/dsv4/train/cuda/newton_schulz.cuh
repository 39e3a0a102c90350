// SPDX-License-Identifier: Apache-2.0
/// Newton-Schulz on the GPU, a whole batch at a time. Products in the scalar type are cuBLASLt's. In 16 bits
/// those that are symmetric are our own on Hopper: one triangle is computed.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_portable.cuh>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/train/cuda/newton_schulz_kernels.cuh>
#include <dsv4/train/cuda/symmetric_product_sm90.cuh>
#include <dsv4/train/newton_schulz.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace dsv4 {
namespace detail {

/// The matrices of a batch while the steps are made: X (B, n, m), n <= m, rows of `ldx` elements, and square
/// ones (B, n, n), rows of `lda`. E is what products read: T, or bf16 in the standard form, or fp16 in the
/// Gram form. There X and R are `scale` times as large, or their small elements would lose bits.
template <class T, class E>
class newton_schulz_batch {
 public:
  using inputs = typename newton_schulz<T, space::device>::inputs;
  using outputs = typename newton_schulz<T, space::device>::outputs;
  static constexpr bool rounding = !std::is_same_v<T, E>;
  static constexpr double scale = std::is_same_v<E, fp16> ? 0x1p12 : 1;

  static std::int64_t scratch(const inputs& in) {
    const newton_schulz_batch s(in);
    const std::int64_t bytes = s.batch_ * newton_schulz_parts * std::int64_t{sizeof(double)} +
                               (2 * s.x_size() + s.squares() * s.a_size()) * std::int64_t{sizeof(E)};
    return ceil_div(bytes, std::int64_t{sizeof(T)});
  }

  newton_schulz_batch(const exec::cuda& p, const inputs& in, T* scratch) : newton_schulz_batch(in) {
    p_ = &p;
    factors_ = reinterpret_cast<double*>(scratch);
    E* at = reinterpret_cast<E*>(factors_ + batch_ * newton_schulz_parts);
    for (E*& x : x_) x = std::exchange(at, at + x_size());
    for (int i = 0; i < squares(); ++i) a_[i] = std::exchange(at, at + a_size());
  }

  void run(const outputs& out) {
    const auto& x = in_.x;
    const std::int64_t chunks = x.extent[1] * ceil_div(x.extent[2], 1024);
    const int parts = static_cast<int>(std::clamp<std::int64_t>(chunks / 4, 1, newton_schulz_parts));
    p_->launch("newton_schulz", newton_schulz_squares_kernel<T>,
               dim3(static_cast<unsigned>(parts), static_cast<unsigned>(batch_)), 256, 0, x, factors_,
               vectorisable(x));
    p_->launch("newton_schulz", newton_schulz_factor_kernel<double>, dim3(static_cast<unsigned>(batch_)), 128,
               0, factors_, parts, in_.epsilon);
    scaled_copy<E, T>(*p_, x, {x_[0], batch_, n_, ldx_}, factors_, scale, tall());
    if constexpr (std::is_same_v<E, fp16>) {
      half_gram(out.y);
    } else {
      if constexpr (rounding)
        bf16_steps();
      else if (in_.chosen_form() == newton_schulz_form::standard)
        standard();
      else
        gram();
      store(out.y);
    }
  }

 private:
  explicit newton_schulz_batch(const inputs& in)
      : in_(in),
        batch_(in.x.extent[0]),
        n_(std::min(in.x.extent[1], in.x.extent[2])),
        m_(std::max(in.x.extent[1], in.x.extent[2])),
        // The matrix units read 8 elements at once: rows are filled up with zeros.
        ldx_(rounding ? ceil_div(m_, 8) * 8 : m_),
        lda_(rounding ? ceil_div(n_, 8) * 8 : n_) {}
  std::int64_t x_size() const { return batch_ * n_ * ldx_; }
  std::int64_t a_size() const { return batch_ * n_ * lda_; }
  int squares() const {
    return in_.chosen_form() == newton_schulz_form::standard ? 2 : std::is_same_v<E, fp16> ? 5 : 4;
  }
  bool tall() const { return in_.x.extent[1] > in_.x.extent[2]; }
  void store(const tensor_view<T, space::device>& y) const {
    tensor_view<const E, space::device> x(x_[0], batch_, n_, ldx_);
    x.extent[2] = m_;
    scaled_copy<T, E>(*p_, x, y, nullptr, 1 / scale, tall());
  }

  /// y = factor x weight^T + c_scale c, or x weight where `flipped`, of matrices (rows, inner) and (columns,
  /// inner).
  struct product {
    std::int64_t rows, columns, inner;
    const E* x;
    std::int64_t ldx;
    const E* weight;
    std::int64_t ldw;
    bool flipped;
    E* y;
    std::int64_t ldy;
    double factor = 1;
    const E* c = nullptr;
    double c_scale = 0;
  };
  void multiply(const product& q) const {
    auto m = matmul_problem<E, E>();
    m.rows = q.rows, m.columns = q.columns, m.inner = q.inner, m.batch = batch_;
    m.x = q.x, m.weight = q.weight, m.y = q.y, m.c = q.c;
    m.x_stride = q.ldx, m.weight_stride = q.ldw, m.y_stride = q.ldy;
    m.x_batch_stride = n_ * q.ldx, m.weight_batch_stride = n_ * q.ldw, m.y_batch_stride = n_ * q.ldy;
    m.weight_transposed = q.flipped;
    m.scale = q.factor, m.c_scale = q.c_scale;
    if (p_->matmul("newton_schulz", m)) return;
    if constexpr (rounding) {
      throw cuda_error("newton_schulz", "cuBLASLt has no product in 16 bits of this shape",
                       CUBLAS_STATUS_NOT_SUPPORTED, std::source_location::current());
    } else {
      tensor_view<const E, space::device> x(q.x, q.rows, batch_, q.inner),
          weight(q.weight, batch_, q.columns, q.inner);
      tensor_view<E, space::device> y(q.y, q.rows, batch_, q.columns);
      x.stride[0] = q.ldx, x.stride[1] = n_ * q.ldx;
      y.stride[0] = q.ldy, y.stride[1] = n_ * q.ldy;
      weight.stride[0] = n_ * q.ldw;
      weight.stride[1] = q.flipped ? 1 : q.ldw, weight.stride[2] = q.flipped ? q.ldw : 1;
      launch_batched_linear(*p_, "newton_schulz", x, weight, y);
    }
  }

  /// to = X X^T
  void gram_matrix(E* to) const { multiply({n_, n_, m_, x_[0], ldx_, x_[0], ldx_, false, to, lda_}); }
  /// to = s q for square matrices, of which q is symmetric.
  void square_product(const E* s, const E* q, E* to) const {
    multiply({n_, n_, n_, s, lda_, q, lda_, false, to, lda_});
  }
  /// to = a I + b A + c A^2
  void polynomial(const newton_schulz_step& k, const E* gram, E* to, bool with_identity) const {
    square_product(gram, gram, to);
    p_->launch("newton_schulz", newton_schulz_polynomial_kernel<E>, loop_grid(*p_, a_size(), 256), 256, 0,
               with_identity ? E(k.a) : E(0), E(k.b), E(k.c), gram, to, n_, a_size());
  }
  /// X = s X + a X
  void apply(const E* s, double a) {
    multiply({n_, ldx_, n_, s, lda_, x_[0], ldx_, true, x_[1], ldx_, 1, a != 0 ? x_[0] : nullptr, a});
    std::swap(x_[0], x_[1]);
  }

  void standard() {
    for (const auto& k : in_.steps) {
      gram_matrix(a_[0]);
      polynomial(k, a_[0], a_[1], true);
      apply(a_[1], 0);
    }
  }

  void gram() {
    E *&r = a_[0], *&h = a_[1], *&q = a_[2], *&t = a_[3];
    const std::size_t restart = in_.chosen_restart(), count = in_.steps.size();
    for (std::size_t k = 0; k < count; ++k) {
      const bool first = k % restart == 0, last = (k + 1) % restart == 0 || k + 1 == count;
      if (first) gram_matrix(r);
      polynomial(in_.steps[k], r, h, true);
      if (!last) {
        square_product(h, r, t);
        square_product(t, h, r);
      }
      if (first) {
        std::swap(q, h);
      } else {
        square_product(q, h, t);
        std::swap(q, t);
      }
      if (last) apply(q, 0);
    }
  }

  /// The product `m`, whose y is square.
  void symmetric(const symmetric_product<E>& m) const {
    if (launch_symmetric_product_sm90(*p_, "newton_schulz", m)) return;
    for (std::int64_t s = 0; s < m.sets; ++s) {
      E* const y = m.y + s * m.y_set;
      multiply({n_, n_, m.inner, m.left, m.left_stride, m.right + s * m.right_set, m.right_stride, false, y,
                lda_, m.scale, m.c, m.c_scale});
      if (m.shift != 0)
        p_->launch("newton_schulz", newton_schulz_shift_kernel<E>,
                   dim3(static_cast<unsigned>(ceil_div(n_, 256)), static_cast<unsigned>(batch_)), 256, 0, y,
                   n_, lda_, static_cast<float>(m.shift));
    }
  }
  /// to = X X^T
  symmetric_product<E> of_x(E* to) const {
    symmetric_product<E> m = of_squares(x_[0], x_[0], to);
    m.inner = m_, m.scale = 1 / scale;
    m.left_stride = m.right_stride = ldx_, m.left_batch = m.right_batch = n_ * ldx_;
    return m;
  }
  /// to = left right
  symmetric_product<E> of_squares(const E* left, const E* right, E* to) const {
    const std::int64_t each = n_ * lda_;
    symmetric_product<E> m{};
    m.rows = m.inner = n_, m.batch = batch_;
    m.left = left, m.right = right, m.y = to;
    m.left_stride = m.right_stride = m.y_stride = lda_;
    m.left_batch = m.right_batch = m.y_batch = each;
    return m;
  }

  void bf16_steps() {
    for (const auto& k : in_.steps) {
      symmetric(of_x(a_[0]));
      auto polynomial = of_squares(a_[0], a_[0], a_[1]);
      polynomial.c = a_[0], polynomial.scale = k.c, polynomial.c_scale = k.b;
      symmetric(polynomial);
      apply(a_[1], k.a);
    }
  }

  /// As gram(); but products of H with R and with Q are one of two sets, for which Q lies behind R.
  void half_gram(const tensor_view<T, space::device>& y) {
    auto& [r, t, h, q, next_q] = a_;
    const std::size_t restart = in_.chosen_restart(), count = in_.steps.size();
    for (std::size_t k = 0; k < count; ++k) {
      const auto& [a, b, c] = in_.steps[k];
      const bool first = k % restart == 0, last = (k + 1) % restart == 0 || k + 1 == count;
      if (first) symmetric(of_x(r));
      E* const polynomial = first ? q : h;
      auto m = of_squares(r, r, polynomial);
      m.c = r, m.scale = c / (scale * scale), m.c_scale = b / scale, m.shift = a;
      symmetric(m);
      if (!first) {
        m = of_squares(h, last ? q : r, last ? next_q : t);
        if (!last) m.sets = 2, m.right_set = q - r, m.y_set = next_q - t;
        symmetric(m);
        std::swap(q, next_q);
      } else if (!last) {
        symmetric(of_squares(polynomial, r, t));
      }
      if (!last) symmetric(of_squares(t, polynomial, r));
      if (last && k + 1 == count && apply_to(q, y)) return;
      if (last) apply(q, 0);
    }
    store(y);
  }
  /// y = Q X, not rounded; false where that is not one product.
  bool apply_to(const E* q, const tensor_view<T, space::device>& y) const {
    if constexpr (!std::is_same_v<T, float>) return false;
    auto m = matmul_problem<float, E>();
    m.rows = y.extent[1], m.columns = y.extent[2], m.inner = n_, m.batch = batch_;
    m.x = q, m.weight = x_[0], m.y = y.data;
    m.x_stride = lda_, m.weight_stride = ldx_, m.y_stride = y.stride[1];
    m.x_batch_stride = n_ * lda_, m.weight_batch_stride = n_ * ldx_, m.y_batch_stride = y.stride[0];
    m.weight_transposed = true;
    if (tall()) {  // y = X^T Q
      std::swap(m.x, m.weight), std::swap(m.x_stride, m.weight_stride);
      std::swap(m.x_batch_stride, m.weight_batch_stride);
      m.x_transposed = true, m.weight_transposed = false;
    }
    m.scale = 1 / scale;
    return p_->matmul("newton_schulz", m);
  }

  const exec::cuda* p_ = nullptr;
  const inputs& in_;
  std::int64_t batch_, n_, m_, ldx_, lda_;
  double* factors_ = nullptr;
  E* x_[2] = {};
  E* a_[5] = {};
};

}  // namespace detail

template <class T>
struct kernel<newton_schulz<T, space::device>, exec::cuda> {
  using op = newton_schulz<T, space::device>;

  static std::int64_t scratch(const exec::cuda&, const typename op::inputs& in) {
    return with_batch(
        in, []<class Batch>(std::type_identity<Batch>, const auto& of) { return Batch::scratch(of); });
  }
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<T, space::device>& scratch) {
    with_batch(in, [&]<class Batch>(std::type_identity<Batch>, const auto& of) {
      Batch(p, of, scratch.data).run(out);
    });
  }

 private:
  /// Calls f with the class that makes the steps.
  template <class F>
  static auto with_batch(const typename op::inputs& in, const F& f) {
    using detail::newton_schulz_batch;
    if (in.products == newton_schulz_products::full)
      return f(std::type_identity<newton_schulz_batch<T, T>>{}, in);
    if (in.chosen_form() == newton_schulz_form::standard)
      return f(std::type_identity<newton_schulz_batch<T, bf16>>{}, in);
    return f(std::type_identity<newton_schulz_batch<T, fp16>>{}, in);
  }
};

}  // namespace dsv4
