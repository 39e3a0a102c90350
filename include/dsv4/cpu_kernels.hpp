// SPDX-License-Identifier: Apache-2.0
/// The matrix kernels of exec::cpu, compiled here: for the one file of a program whose others are compiled
/// with DSV4_COMPILED_KERNELS=1. The target dsv4::cpu_kernels of the CMake package does both.
#pragma once

#include <dsv4/ops/cpu/gemm_dispatch.hpp>
#include <dsv4/ops/cpu/stored_dispatch.hpp>

namespace dsv4::detail {

#define DSV4_DENSE(T)            \
  template class cpu_kernels<T>; \
  template const cpu_kernels<T>& best_kernels();
DSV4_DENSE(float)
DSV4_DENSE(double)
#undef DSV4_DENSE

#define DSV4_DECODE(T, W)                                                                                 \
  template const stored_kernels<T, W>& best_stored_kernels();                                             \
  template void stored_kernels<T, W>::decode(const matrix&, std::int64_t, std::int64_t, T*, std::int64_t) \
      const;
#define DSV4_PRODUCT(T, W)                                                                                 \
  template void stored_kernels<T, W>::product(const T*, std::int64_t, std::int64_t, const matrix&, T*, T*, \
                                              std::int64_t) const;
#define DSV4_STORED(W)  \
  DSV4_DECODE(float, W) \
  DSV4_DECODE(double, W)
#define DSV4_BLOCKS(F) DSV4_STORED(F) template quantise_kernels<F> best_quantise_kernels();
#define DSV4_WEIGHTS(W)  \
  DSV4_PRODUCT(float, W) \
  DSV4_PRODUCT(double, W)
#define DSV4_BF16_PRODUCTS(W)                                                                   \
  template bool bf16_products<float, W, fp8_activation>();                                      \
  template void bf16_gemm_nt<W, fp8_activation>(                                                \
      const exec::cpu&, const storage_matrix<const fp8_activation>&, const matrix_view<float>&, \
      const std::vector<bf16_problem<W>>&);
DSV4_STORED(bf16)
DSV4_BLOCKS(fp8_weight)
DSV4_BLOCKS(fp8_activation)
DSV4_BLOCKS(fp8_kv)
DSV4_BLOCKS(mxfp4)
DSV4_BLOCKS(mxfp4_ocp)
DSV4_WEIGHTS(bf16)
DSV4_WEIGHTS(fp8_weight)
DSV4_WEIGHTS(mxfp4)
DSV4_WEIGHTS(mxfp4_ocp)
DSV4_BF16_PRODUCTS(fp8_weight)
DSV4_BF16_PRODUCTS(mxfp4)
DSV4_BF16_PRODUCTS(mxfp4_ocp)
#undef DSV4_DECODE
#undef DSV4_PRODUCT
#undef DSV4_STORED
#undef DSV4_BLOCKS
#undef DSV4_WEIGHTS
#undef DSV4_BF16_PRODUCTS

}  // namespace dsv4::detail
