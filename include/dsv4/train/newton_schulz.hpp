// SPDX-License-Identifier: Apache-2.0
/// Newton-Schulz orthogonalisation: all singular values of a matrix are driven to 1, its singular vectors
/// stay.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/numeric/bf16.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

/// One step, X <- a X + (b A + c A^2) X with A = X X^T. A singular value x becomes a x + b x^3 + c x^5.
struct newton_schulz_step {
  double a, b, c;
  constexpr double operator()(double x) const { return x * (a + x * x * (b + c * x * x)); }
};

namespace detail {
template <std::size_t N>
constexpr std::array<newton_schulz_step, N> repeated(const newton_schulz_step& step) {
  std::array<newton_schulz_step, N> steps{};
  steps.fill(step);
  return steps;
}
}  // namespace detail

/// Five steps of Jordan's quintic: fast growth, then a band of [0.68, 1.13] around 1 that is never left.
inline constexpr auto newton_schulz_jordan = detail::repeated<5>({3.4445, -4.7750, 2.0315});

/// DeepSeek-V4's: eight of Jordan's steps, then two that converge quadratically (report, section 2.4).
/// Whatever is at least 5e-5 of the Frobenius norm ends in [1, 1.0021].
inline constexpr std::array<newton_schulz_step, 10> newton_schulz_hybrid = [] {
  auto steps = detail::repeated<10>({3.4445, -4.7750, 2.0315});
  steps[8] = steps[9] = {2, -1.5, 0.5};
  return steps;
}();

/// You's five steps, each different.
inline constexpr std::array<newton_schulz_step, 5> newton_schulz_you{{{4.0848, -6.8946, 2.9270},
                                                                      {3.9505, -6.3029, 2.6377},
                                                                      {3.7418, -5.5913, 2.3037},
                                                                      {2.8769, -3.1427, 1.2046},
                                                                      {2.8366, -3.0525, 1.2012}}};

/// Polar Express: greedily optimal steps, here with a safety factor of 1.05 on the largest singular value.
inline constexpr std::array<newton_schulz_step, 5> newton_schulz_polar_express = [] {
  std::array<newton_schulz_step, 5> steps{{{8.28721201814563, -23.595886519098837, 17.300387312530933},
                                           {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
                                           {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
                                           {3.3184196573706015, -2.488488024314874, 0.51004894012372},
                                           {2.300652019954817, -1.6689039845749493, 0.4188073119525673}}};
  constexpr double s = 1.05, s3 = s * s * s, s5 = s3 * s * s;
  for (auto& step : steps) step = {step.a / s, step.b / s3, step.c / s5};
  return steps;
}();

/// How the steps are computed; all three give the same matrix up to rounding.
enum class newton_schulz_form {
  automatic,  ///< the faster of the two for the shape: `faster_form`
  standard,   ///< X <- a X + B X, every step on the whole matrix
  gram,       ///< Q <- Q (a I + B) on the small Gram matrix R = X X^T, X <- Q X at restarts and at the end
};

/// What products are rounded to. `bf16` is how DeepSeek trains: operands of 16 bits, sums in float. They are
/// bf16 in the standard form. In the Gram form, as in Dao-AILab's, they are half precision: bf16's errors of
/// R make it indefinite, and each step enlarges negative eigenvalues twelvefold. So the Gram form comes
/// several times closer to the exact result than the standard one, from Gaussian matrices to a condition of
/// 1e4.
enum class newton_schulz_products { full, bf16 };

/// The form that needs less time for N x M matrices. On the host, whose matrix units have no half precision,
/// that is the standard one for bf16.
constexpr newton_schulz_form faster_form(std::int64_t rows, std::int64_t columns,
                                         newton_schulz_products products = newton_schulz_products::full,
                                         space s = space::host) {
  const std::int64_t n = rows < columns ? rows : columns, m = rows < columns ? columns : rows;
  // A restart costs 3 n^2 m operations and saves 3 n^3: nothing to win near the square.
  return 8 * m >= 9 * n && (products == newton_schulz_products::full || s == space::device)
             ? newton_schulz_form::gram
             : newton_schulz_form::standard;
}

namespace detail {
/// `v` as products read it. Half precision counts by its 11 significant bits: who stores it scales it.
template <class T>
T rounded_operand(T v, newton_schulz_products products, newton_schulz_form form) {
  if (products == newton_schulz_products::full) return v;
  if (form == newton_schulz_form::standard) return static_cast<T>(bf16(v));
  constexpr int dropped = wide_layout<T>::mantissa_bits - 10;
  using word = typename wide_layout<T>::word;
  const word w = to_word(v), half = (word{1} << (dropped - 1)) - 1 + (w >> dropped & 1);
  return from_word(static_cast<word>((w + half) >> dropped << dropped));
}
}  // namespace detail

/// y[b] = the steps applied to x[b] / (|x[b]|_F + epsilon), for each of B matrices. Tall matrices are worked
/// on transposed. y may be x. In the Gram form X and R are made anew after every `restart` steps, because R's
/// rounding errors grow twelvefold a step; 0 leaves that to the precision (3 in half, 4 in float, 5 in
/// double). Source: report, section 2.4, and Dao-AILab's Gram form. A kernel also tells how much memory it
/// borrows: scratch(policy, inputs), in elements of T.
template <class T, space S = space::host>
struct newton_schulz {
  static constexpr space memory = S;
  struct inputs {
    tensor_view<const T, S> x;  // (B, N, M)
    std::span<const newton_schulz_step> steps = newton_schulz_hybrid;
    newton_schulz_form form = newton_schulz_form::automatic;
    newton_schulz_products products = newton_schulz_products::full;
    int restart = 0;
    double epsilon = 1e-7;

    newton_schulz_form chosen_form() const {
      return form == newton_schulz_form::automatic ? faster_form(x.extent[1], x.extent[2], products, S)
                                                   : form;
    }
    std::size_t chosen_restart() const {
      if (restart > 0) return static_cast<std::size_t>(restart);
      return products == newton_schulz_products::bf16 ? 3 : sizeof(T) == 4 ? 4 : 5;
    }
  };
  struct outputs {
    tensor_view<T, S> y;  // (B, N, M)
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    for (int axis = 0; axis < 3; ++axis)
      expect_extent("newton_schulz",
                    axis == 0   ? "y matrices"
                    : axis == 1 ? "y rows"
                                : "y columns",
                    out.y.extent[axis], in.x.extent[axis]);
    if (in.x.size() == 0) return;
    workspace_scope<S> scope(w);
    const auto scratch = take<T>(w, kernel<newton_schulz, P>::scratch(p, in));
    detail::dispatch<newton_schulz>(p, in, out, scratch);
  }
};

template <class T>
struct kernel<newton_schulz<T>, exec::reference> {
  using op = newton_schulz<T>;
  static std::int64_t scratch(const auto&, const typename op::inputs&) { return 0; }
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<T>&) {
    for (std::int64_t b = 0; b < in.x.extent[0]; ++b) one(in, in.x[b], out.y[b]);
  }

 private:
  /// A row-major matrix of doubles.
  struct matrix {
    std::int64_t rows, columns;
    std::vector<double> values = std::vector<double>(static_cast<std::size_t>(rows * columns));
    double& operator()(std::int64_t i, std::int64_t j) {
      return values[static_cast<std::size_t>(i * columns + j)];
    }
    double operator()(std::int64_t i, std::int64_t j) const {
      return values[static_cast<std::size_t>(i * columns + j)];
    }
  };

  /// alpha p q + beta c + gamma I, rounded as products are.
  static matrix combine(const typename op::inputs& in, double alpha, const matrix& p, const matrix& q,
                        double beta, const matrix* c, double gamma = 0) {
    matrix r{p.rows, q.columns};
    for (std::int64_t i = 0; i < r.rows; ++i)
      for (std::int64_t j = 0; j < r.columns; ++j) {
        double sum = 0;
        for (std::int64_t k = 0; k < p.columns; ++k) sum += p(i, k) * q(k, j);
        const double v = alpha * sum + (c ? beta * (*c)(i, j) : 0.0) + (i == j ? gamma : 0.0);
        r(i, j) = rounded(in, v);
      }
    return r;
  }
  static double rounded(const typename op::inputs& in, double v) {
    return detail::rounded_operand(v, in.products, in.chosen_form());
  }
  static matrix transposed(const matrix& m) {
    matrix t{m.columns, m.rows};
    for (std::int64_t i = 0; i < m.rows; ++i)
      for (std::int64_t j = 0; j < m.columns; ++j) t(j, i) = m(i, j);
    return t;
  }

  static void one(const typename op::inputs& in, matrix_view<const T> from, matrix_view<T> to) {
    matrix x{from.extent[0], from.extent[1]};
    double squares = 0;
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t j = 0; j < x.columns; ++j) squares += double(from(i, j)) * double(from(i, j));
    const double norm = std::sqrt(squares) + in.epsilon;
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t j = 0; j < x.columns; ++j) x(i, j) = rounded(in, double(from(i, j)) / norm);
    const bool tall = x.rows > x.columns;
    if (tall) x = transposed(x);
    if (in.chosen_form() == newton_schulz_form::standard) {
      for (const auto& [a, b, c] : in.steps) {
        const matrix gram = combine(in, 1, x, transposed(x), 0, nullptr);
        const matrix polynomial = combine(in, c, gram, gram, b, &gram);  // b A + c A^2
        x = combine(in, 1, polynomial, x, a, &x);
      }
    } else {
      matrix r{0, 0}, q{0, 0};
      for (std::size_t k = 0; k < in.steps.size(); ++k) {
        const auto& [a, b, c] = in.steps[k];
        const bool first = k % in.chosen_restart() == 0;
        if (first) r = combine(in, 1, x, transposed(x), 0, nullptr);
        const matrix h = combine(in, c, r, r, b, &r, a);  // a I + b R + c R^2
        q = first ? h : combine(in, 1, q, h, 0, nullptr);
        r = combine(in, 1, combine(in, 1, h, r, 0, nullptr), h, 0, nullptr);
        if ((k + 1) % in.chosen_restart() == 0 || k + 1 == in.steps.size())
          x = combine(in, 1, q, x, 0, nullptr);
      }
    }
    if (tall) x = transposed(x);
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t j = 0; j < x.columns; ++j) to(i, j) = T(x(i, j));
  }
};

template <class T>
struct kernel<newton_schulz<T>, exec::cpu>;  // in train/cpu/newton_schulz.hpp

}  // namespace dsv4
