// SPDX-License-Identifier: Apache-2.0
/// Newton-Schulz on the GPU, a whole batch at a time. Products in the scalar type are cuBLASLt's. In bf16
/// X X^T and A^2, which are symmetric, are our own on Hopper: one triangle is computed.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_portable.cuh>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/train/cuda/symmetric_product_sm90.cuh>
#include <dsv4/train/newton_schulz.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace dsv4 {
namespace detail {

inline constexpr int newton_schulz_parts = 64;

/// partial[b, part] = the sum of squares of every 64th row. Block (part, matrix).
template <class T>
__global__ void __launch_bounds__(256)
    newton_schulz_squares_kernel(tensor_view<const T, space::device> x, double* partial) {
  wait_for_previous_kernels();
  __shared__ double sums[8];
  const auto own = x[blockIdx.y];
  double sum = 0;
  for (std::int64_t i = blockIdx.x; i < own.extent[0]; i += newton_schulz_parts)
    for (std::int64_t j = threadIdx.x; j < own.extent[1]; j += blockDim.x) {
      const double v = static_cast<double>(own(i, j));
      sum += v * v;
    }
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) partial[std::int64_t{blockIdx.y} * newton_schulz_parts + blockIdx.x] = sum;
}

/// factor[b] = 1 / (norm + epsilon), in place of the first partial sum.
template <class Sum>
__global__ void __launch_bounds__(64)
    newton_schulz_factor_kernel(Sum* partial, std::int64_t batch, double epsilon) {
  wait_for_previous_kernels();
  const std::int64_t b = global_thread();
  if (b >= batch) return;
  double* const own = partial + b * newton_schulz_parts;
  double sum = 0;
  for (int i = 0; i < newton_schulz_parts; ++i) sum += own[i];
  own[0] = 1 / (sqrt(sum) + epsilon);
}

/// to[b] = factor[b] from[b], where factor is every 64th of `factors`, or 1 without them. `to` may be wider
/// than `from`: what is left of its rows becomes 0. Block (1024 columns, row, matrix).
template <class To, class From>
__global__ void __launch_bounds__(256)
    scaled_copy_kernel(tensor_view<const From, space::device> from, tensor_view<To, space::device> to,
                       const double* factors, bool vectors) {
  wait_for_previous_kernels();
  const std::int64_t j = (std::int64_t{blockIdx.x} * 256 + threadIdx.x) * 4, columns = from.extent[2];
  if (j >= to.extent[2]) return;
  using A = accumulator<From>;
  const A factor = factors ? static_cast<A>(factors[std::int64_t{blockIdx.z} * newton_schulz_parts]) : A(1);
  const From* const source = from.data + blockIdx.z * from.stride[0] + blockIdx.y * from.stride[1] + j;
  To* const target = to.data + blockIdx.z * to.stride[0] + blockIdx.y * to.stride[1] + j;
  const auto scaled = [&](From v) { return narrowed<To>(widened<A>(v) * factor); };
  if (vectors && j + 4 <= columns) {
    const auto in = *reinterpret_cast<const pack<From, 4>*>(source);
    pack<To, 4> out;
#pragma unroll
    for (int k = 0; k < 4; ++k) out.value[k] = scaled(in.value[k]);
    *reinterpret_cast<pack<To, 4>*>(target) = out;
    return;
  }
  for (int k = 0; k < 4 && j + k < to.extent[2]; ++k) target[k] = j + k < columns ? scaled(source[k]) : To{};
}

/// The same of from[b]^T. Block (32 columns of `to`, 32 rows, matrix) of 32 x 8 threads.
template <class To, class From>
__global__ void __launch_bounds__(256)
    scaled_transpose_kernel(tensor_view<const From, space::device> from, tensor_view<To, space::device> to,
                            const double* factors) {
  wait_for_previous_kernels();
  using A = accumulator<From>;
  __shared__ A tile[32][33];
  const A factor = factors ? static_cast<A>(factors[std::int64_t{blockIdx.z} * newton_schulz_parts]) : A(1);
  const auto source = from[blockIdx.z];
  const auto target = to[blockIdx.z];
  const std::int64_t column = std::int64_t{blockIdx.x} * 32, row = std::int64_t{blockIdx.y} * 32;
  for (int k = static_cast<int>(threadIdx.y); k < 32; k += 8) {
    const std::int64_t i = column + k, j = row + threadIdx.x;
    tile[k][threadIdx.x] = i < source.extent[0] && j < source.extent[1] ? widened<A>(source(i, j)) : A(0);
  }
  __syncthreads();
  for (int k = static_cast<int>(threadIdx.y); k < 32; k += 8) {
    const std::int64_t i = row + k, j = column + threadIdx.x;
    if (i < target.extent[0] && j < target.extent[1])
      target(i, j) = narrowed<To>(tile[threadIdx.x][k] * factor);
  }
}

template <class To, class From>
void scaled_copy(const exec::cuda& p, const tensor_view<const From, space::device>& from,
                 const tensor_view<To, space::device>& to, const double* factors, bool transposing) {
  const auto count = [](std::int64_t n) { return static_cast<unsigned>(n); };
  if (transposing) {
    p.launch("newton_schulz", scaled_transpose_kernel<To, From>,
             dim3(count(ceil_div(to.extent[2], 32)), count(ceil_div(to.extent[1], 32)), count(to.extent[0])),
             dim3(32, 8), 0, from, to, factors);
  } else {
    p.launch("newton_schulz", scaled_copy_kernel<To, From>,
             dim3(count(ceil_div(to.extent[2], 1024)), count(to.extent[1]), count(to.extent[0])), 256, 0,
             from, to, factors, all_vectorisable(from, to));
  }
}

/// s = a I + b A + c S, element by element, for dense (B, n, n).
template <class T>
__global__ void __launch_bounds__(256)
    newton_schulz_polynomial_kernel(T a, T b, T c, const T* gram, T* s, std::int64_t n, std::int64_t count) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < count; i += global_threads())
    s[i] = c * s[i] + b * gram[i] + (i / n % n == i % n ? a : T(0));
}

/// The matrices of a batch while the steps are made: X (B, n, m), n <= m, rows of `ldx` elements, and square
/// ones (B, n, n), rows of `lda`. E is what products read.
template <class T, class E>
class newton_schulz_batch {
 public:
  using inputs = typename newton_schulz<T, space::device>::inputs;
  using outputs = typename newton_schulz<T, space::device>::outputs;
  static constexpr bool rounding = !std::is_same_v<T, E>;  ///< products in bf16

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
    const bool tall = in_.x.extent[1] > in_.x.extent[2];
    p_->launch("newton_schulz", newton_schulz_squares_kernel<T>,
               dim3(newton_schulz_parts, static_cast<unsigned>(batch_)), 256, 0, in_.x, factors_);
    p_->launch("newton_schulz", newton_schulz_factor_kernel<double>,
               dim3(static_cast<unsigned>(ceil_div(batch_, 64))), 64, 0, factors_, batch_, in_.epsilon);
    scaled_copy<E, T>(*p_, in_.x, {x_[0], batch_, n_, ldx_}, factors_, tall);
    if constexpr (rounding)
      bf16_steps();
    else if (in_.chosen_form() == newton_schulz_form::standard)
      standard();
    else
      gram();
    tensor_view<const E, space::device> x(x_[0], batch_, n_, ldx_);
    x.extent[2] = m_;
    scaled_copy<T, E>(*p_, x, out.y, nullptr, tall);
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
  int squares() const { return in_.chosen_form() == newton_schulz_form::standard ? 2 : 4; }

  /// y = scale x weight^T + c_scale c, or x weight where `flipped`, of matrices (rows, inner) and (columns,
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
    double scale = 1;
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
    m.scale = q.scale, m.c_scale = q.c_scale;
    if (p_->matmul("newton_schulz", m)) return;
    if constexpr (rounding) {
      throw cuda_error("newton_schulz", "cuBLASLt has no product in bf16 of this shape",
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
    auto& [r, h, q, t] = a_;
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

  /// y = scale x x^T + c_scale c
  void symmetric(const E* x, std::int64_t ldx, E* y, double scale, const E* c, double c_scale) const {
    const symmetric_product m{.x = x,
                              .x_stride = ldx,
                              .x_batch = n_ * ldx,
                              .rows = n_,
                              .inner = ldx,
                              .y = y,
                              .y_stride = lda_,
                              .y_batch = n_ * lda_,
                              .c = c,
                              .scale = static_cast<float>(scale),
                              .c_scale = static_cast<float>(c_scale),
                              .batch = static_cast<int>(batch_)};
    if (!launch_symmetric_product_sm90(*p_, "newton_schulz", m))
      multiply({n_, n_, ldx, x, ldx, x, ldx, false, y, lda_, scale, c, c_scale});
  }
  void bf16_steps() {
    // Products read whole rows of these, and write n columns.
    for (E* a : {a_[0], a_[1]})
      check_cuda(cudaMemsetAsync(a, 0, static_cast<std::size_t>(a_size()) * sizeof(E), p_->stream()),
                 "newton_schulz");
    for (const auto& k : in_.steps) {
      symmetric(x_[0], ldx_, a_[0], 1, nullptr, 0);
      symmetric(a_[0], lda_, a_[1], k.c, a_[0], k.b);
      apply(a_[1], k.a);
    }
  }

  const exec::cuda* p_ = nullptr;
  const inputs& in_;
  std::int64_t batch_, n_, m_, ldx_, lda_;
  double* factors_ = nullptr;
  E* x_[2] = {};
  E* a_[4] = {};
};

}  // namespace detail

template <class T>
struct kernel<newton_schulz<T, space::device>, exec::cuda> {
  using op = newton_schulz<T, space::device>;

  static std::int64_t scratch(const exec::cuda&, const typename op::inputs& in) {
    return in.products == newton_schulz_products::bf16 ? detail::newton_schulz_batch<T, bf16>::scratch(in)
                                                       : detail::newton_schulz_batch<T, T>::scratch(in);
  }
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<T, space::device>& scratch) {
    if (in.products == newton_schulz_products::bf16)
      detail::newton_schulz_batch<T, bf16>(p, in, scratch.data).run(out);
    else
      detail::newton_schulz_batch<T, T>(p, in, scratch.data).run(out);
  }
};

}  // namespace dsv4
