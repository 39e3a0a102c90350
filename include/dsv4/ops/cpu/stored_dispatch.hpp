// SPDX-License-Identifier: Apache-2.0
/// The kernels on narrow formats of all instruction sets, and the choice between them.
#pragma once

#include <dsv4/ops/cpu/gemm_dispatch.hpp>
#include <dsv4/ops/cpu/quantise_lanes.hpp>
#include <dsv4/ops/cpu/stored_avx2.hpp>
#include <dsv4/ops/cpu/stored_avx512.hpp>
#include <dsv4/ops/cpu/stored_bf16_gemm.hpp>
#include <dsv4/ops/cpu/stored_kernels.hpp>
#include <dsv4/ops/cpu/stored_portable.hpp>
#include <dsv4/ops/cpu/stored_vbmi.hpp>

namespace dsv4::detail {

#if !DSV4_X86_KERNELS
namespace avx512_vbmi = portable;
#endif

template <class T, class W>
void stored_kernels<T, W>::product(const T* x, std::int64_t ldx, std::int64_t n, const matrix& w, T* scratch,
                                   T* y, std::int64_t ldy) const {
  kernel_for(set_, &portable::stored_nt<T, W>, &avx2::stored_nt<T, W>, &avx512::stored_nt<T, W>,
             &avx512_vbmi::stored_nt<T, W>)(x, ldx, n, w, scratch, y, ldy);
}
template <class T, class W>
void stored_kernels<T, W>::decode(const matrix& w, std::int64_t c, std::int64_t n, T* to,
                                  std::int64_t ldt) const {
  kernel_for(set_, &portable::stored_decode<T, W>, &avx2::stored_decode<T, W>, &avx512::stored_decode<T, W>)(
      w, c, n, to, ldt);
}

template <class T, class W>
const stored_kernels<T, W>& best_stored_kernels() {
  static const stored_kernels<T, W> best(
      supported(instruction_set::avx512_vbmi) ? instruction_set::avx512_vbmi : best_set());
  return best;
}

/// The block kernels of one instruction set, which must be supported.
template <class F>
quantise_kernels<F> quantise_kernels_for(instruction_set set) {
#if DSV4_X86_KERNELS
  if (set == instruction_set::avx512) return {&avx512::quantise_block<F>, &avx512::round_trip_block<F>};
  if (set == instruction_set::avx2) return {&avx2::quantise_block<F>, &avx2::round_trip_block<F>};
  return {&portable::quantise_block<F>, &portable::round_trip_block<F>};
#else
  (void)set;
  return {};
#endif
}

template <class F>
quantise_kernels<F> best_quantise_kernels() {
  return quantise_kernels_for<F>(best_set());
}

}  // namespace dsv4::detail
