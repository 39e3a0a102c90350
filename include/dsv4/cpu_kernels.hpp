// SPDX-License-Identifier: Apache-2.0
/// The matrix kernels of exec::cpu, compiled here: for the one file of a program whose others are compiled
/// with DSV4_COMPILED_KERNELS=1. The target dsv4::cpu_kernels of the CMake package does both. What
/// numerics_config can ask for is here, and nothing else: weights and inputs are of the scalar type, float or
/// double, or narrow.
#pragma once

#include <dsv4/ops/cpu/gemm_dispatch.hpp>
#include <dsv4/ops/cpu/stored_dispatch.hpp>

#include <cstdint>
#include <span>

namespace dsv4::detail {

#define DSV4_KERNELS(T)                                       \
  template class cpu_kernels<T>;                              \
  template const cpu_kernels<T>& best_kernels();              \
  template const stored_kernels<T, T>& best_stored_kernels(); \
  DSV4_PRODUCT(T, T)                                          \
  DSV4_STORED(T, bf16)                                        \
  DSV4_STORED(T, fp8_weight)                                  \
  DSV4_STORED(T, mxfp4)                                       \
  DSV4_STORED(T, mxfp4_ocp)                                   \
  DSV4_DECODE(T, fp8_activation)                              \
  DSV4_DECODE(T, fp8_kv)
#define DSV4_STORED(T, W) \
  DSV4_DECODE(T, W)       \
  DSV4_PRODUCT(T, W)
#define DSV4_DECODE(T, W)                                                                                 \
  template const stored_kernels<T, W>& best_stored_kernels();                                             \
  template void stored_kernels<T, W>::decode(const matrix&, std::int64_t, std::int64_t, T*, std::int64_t) \
      const;
#define DSV4_PRODUCT(T, W)                                                                                 \
  template void stored_kernels<T, W>::product(const T*, std::int64_t, std::int64_t, const matrix&, T*, T*, \
                                              std::int64_t) const;
DSV4_KERNELS(float)
DSV4_KERNELS(double)
#undef DSV4_KERNELS
#undef DSV4_STORED
#undef DSV4_DECODE
#undef DSV4_PRODUCT

template quantise_kernels<fp8_weight> best_quantise_kernels();
template quantise_kernels<fp8_activation> best_quantise_kernels();
template quantise_kernels<fp8_kv> best_quantise_kernels();
template quantise_kernels<mxfp4> best_quantise_kernels();
template quantise_kernels<mxfp4_ocp> best_quantise_kernels();

#define DSV4_BF16_PRODUCTS(W)                                                                   \
  template bool bf16_products<float, W, fp8_activation>();                                      \
  template void bf16_gemm_nt<W, fp8_activation>(                                                \
      const exec::cpu&, const storage_matrix<const fp8_activation>&, const matrix_view<float>&, \
      std::span<const bf16_problem<W>>);
DSV4_BF16_PRODUCTS(fp8_weight)
DSV4_BF16_PRODUCTS(mxfp4)
DSV4_BF16_PRODUCTS(mxfp4_ocp)
#undef DSV4_BF16_PRODUCTS

}  // namespace dsv4::detail
