// SPDX-License-Identifier: Apache-2.0
/// Matrix micro-kernels for AVX-512: 6 x 4 accumulators in 32 registers. Lanes are added in another order
/// than under AVX2, so the two differ by rounding.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if DSV4_X86_KERNELS

namespace dsv4::detail::avx512 {

#define DSV4_LANE [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma"), gnu::always_inline]] static inline
#define DSV4_VECTOR_BYTES 64
#include <dsv4/ops/cpu/gemm_lanes.hpp>
#undef DSV4_VECTOR_BYTES

template <class T>
struct lanes : vector_lanes<T> {
  using typename vector_lanes<T>::vec;
  using typename vector_lanes<T>::half;
  using vector_lanes<T>::put;
  using vector_lanes<T>::reduce4;
  static constexpr int tile_rows = 6, outer_rows = 6, outer_vectors = 4;
  static constexpr std::int64_t outer_depth = 128;

  /// reduce4 of four rows, with half of the instructions: a quarter of a vector holds a row.
  DSV4_LANE void reduce4(const vec (&a)[4], const vec (&b)[4], const vec (&c)[4], const vec (&d)[4], T* y,
                         std::int64_t ldy, bool add) requires(sizeof(T) == 4) {
    vec column[4];
    DSV4_UNROLL for (int j = 0; j < 4; ++j) column[j] =
        add_quarters(add_halves(a[j], b[j]), add_halves(c[j], d[j]));
    const vec rows = add_pairs(add_pairs(column[0], column[1]), add_pairs(column[2], column[3]));
    put(__builtin_shufflevector(rows, rows, 0, 1, 2, 3), y, add);
    put(__builtin_shufflevector(rows, rows, 4, 5, 6, 7), y + ldy, add);
    put(__builtin_shufflevector(rows, rows, 8, 9, 10, 11), y + 2 * ldy, add);
    put(__builtin_shufflevector(rows, rows, 12, 13, 14, 15), y + 3 * ldy, add);
  }
  /// reduce4 of two rows.
  DSV4_LANE void reduce4(const vec (&a)[4], const vec (&b)[4], T* y, std::int64_t ldy,
                         bool add) requires(sizeof(T) == 4) {
    const vec even = add_quarters(add_halves(a[0], b[0]), add_halves(a[2], b[2]));
    const vec odd = add_quarters(add_halves(a[1], b[1]), add_halves(a[3], b[3]));
    const vec pairs = add_pairs(even, odd);  // by quarters: a's columns 0 and 1, b's, a's 2 and 3, b's
    const half low = __builtin_shufflevector(pairs, pairs, 0, 1, 2, 3, 4, 5, 6, 7);
    const half high = __builtin_shufflevector(pairs, pairs, 8, 9, 10, 11, 12, 13, 14, 15);
    const half rows = __builtin_shufflevector(low, high, 0, 2, 8, 10, 4, 6, 12, 14) +
                      __builtin_shufflevector(low, high, 1, 3, 9, 11, 5, 7, 13, 15);
    put(__builtin_shufflevector(rows, rows, 0, 1, 2, 3), y, add);
    put(__builtin_shufflevector(rows, rows, 4, 5, 6, 7), y + ldy, add);
  }

 private:
  /// The steps of reduce4's tree for several vectors at once: a's halves, and b's, added ...
  DSV4_LANE vec add_halves(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23);
  }
  /// ... the quarters of four such halves ...
  DSV4_LANE vec add_quarters(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  /// ... and neighbours within quarters.
  DSV4_LANE vec add_pairs(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  }
};

#define DSV4_TARGET [[gnu::target("avx512f,avx512dq,avx512vl,avx2,fma")]] inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#include <dsv4/ops/cpu/softmax_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx512
#endif
