// SPDX-License-Identifier: Apache-2.0
/// The matrix micro-kernels of all instruction sets, and the choice between them.
#pragma once

#include <dsv4/ops/cpu/gemm_avx2.hpp>
#include <dsv4/ops/cpu/gemm_avx512.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>
#include <dsv4/ops/cpu/gemm_portable.hpp>

#include <cstdint>

namespace dsv4::detail {

#if !DSV4_X86_KERNELS
namespace avx2 = portable;
namespace avx512 = portable;
#endif

template <class T>
void cpu_kernels<T>::gemm_nt(const T* x, std::int64_t ldx, std::int64_t n, const T* w, std::int64_t ldw,
                             std::int64_t o, std::int64_t k, T* y, std::int64_t ldy,
                             std::int64_t next) const {
  kernel_for(set_, &portable::gemm_nt<T>, &avx2::gemm_nt<T>, &avx512::gemm_nt<T>)(x, ldx, n, w, ldw, o, k, y,
                                                                                  ldy, next);
}
template <class T>
void cpu_kernels<T>::gemm_nn(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb,
                             std::int64_t k, std::int64_t n, T* c, std::int64_t ldc, bool add) const {
  kernel_for(set_, &portable::gemm_outer<T, false>, &avx2::gemm_outer<T, false>,
             &avx512::gemm_outer<T, false>)(a, lda, m, b, ldb, k, n, c, ldc, add);
}
template <class T>
void cpu_kernels<T>::gemm_tn(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb,
                             std::int64_t k, std::int64_t n, T* c, std::int64_t ldc, bool add) const {
  kernel_for(set_, &portable::gemm_outer<T, true>, &avx2::gemm_outer<T, true>, &avx512::gemm_outer<T, true>)(
      a, lda, m, b, ldb, k, n, c, ldc, add);
}
template <class T>
void cpu_kernels<T>::block(bool transposed, const T* a, std::int64_t lda, std::int64_t m, const T* b,
                           std::int64_t ldb, std::int64_t k, std::int64_t n, T* c, std::int64_t ldc, bool add,
                           T* scratch, const outer_next<T>& next) const {
  (transposed ? kernel_for(set_, &portable::gemm_outer_block<T, true>, &avx2::gemm_outer_block<T, true>,
                           &avx512::gemm_outer_block<T, true>)
              : kernel_for(set_, &portable::gemm_outer_block<T, false>, &avx2::gemm_outer_block<T, false>,
                           &avx512::gemm_outer_block<T, false>))(a, lda, m, b, ldb, k, n, c, ldc, add,
                                                                 scratch, next);
}
template <class T>
void cpu_kernels<T>::weighted_relu(const T* a, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t n,
                                   T* c) const {
  kernel_for(set_, &portable::weighted_relu<T>, &avx2::weighted_relu<T>, &avx512::weighted_relu<T>)(
      a, m, b, ldb, n, c);
}
template <class T>
T cpu_kernels<T>::softmax_step(T* s, std::int64_t n, T scale, T& top, T& sum) const {
  return kernel_for(set_, &portable::softmax_step<T>, &avx2::softmax_step<T>, &avx512::softmax_step<T>)(
      s, n, scale, top, sum);
}
template <class T>
void cpu_kernels<T>::sigmoid(const T* x, T* y, std::int64_t n) const {
  kernel_for(set_, &portable::sigmoid<T>, &avx2::sigmoid<T>, &avx512::sigmoid<T>)(x, y, n);
}
template <class T>
void cpu_kernels<T>::softmax_gradient(T* s, T* dp, std::int64_t n, T lse, T delta) const {
  kernel_for(set_, &portable::softmax_gradient<T>, &avx2::softmax_gradient<T>, &avx512::softmax_gradient<T>)(
      s, dp, n, lse, delta);
}

template <class T>
const cpu_kernels<T>& best_kernels() {
  static const cpu_kernels<T> best(best_set());
  return best;
}

}  // namespace dsv4::detail
