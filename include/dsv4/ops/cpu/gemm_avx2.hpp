// SPDX-License-Identifier: Apache-2.0
/// Matrix micro-kernels for AVX2 and FMA: 3 x 4 accumulators in 16 registers.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if DSV4_X86_KERNELS

namespace dsv4::detail::avx2 {

#define DSV4_LANE [[gnu::target("avx2,fma,f16c"), gnu::always_inline]] static inline
#define DSV4_VECTOR_BYTES 32
#include <dsv4/ops/cpu/gemm_lanes.hpp>
#undef DSV4_VECTOR_BYTES

template <class T>
struct lanes : vector_lanes<T> {
  using typename vector_lanes<T>::vec;
  typedef T half __attribute__((vector_size(16)));
  static constexpr int tile_rows = 3, outer_rows = 6, outer_vectors = 2;
  static constexpr std::int64_t outer_depth = 256;

  DSV4_LANE T reduce(vec v) {
    const half sum = fold(v);
    if constexpr (sizeof(T) == 4)
      return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    else
      return sum[0] + sum[1];
  }
  DSV4_LANE void reduce4(vec a, vec b, vec c, vec d, T* y, bool add) {
    if constexpr (sizeof(T) == 4) {
      put(add_pairs(add_pairs(fold(a), fold(b)), add_pairs(fold(c), fold(d))), y, add);
    } else {
      put(add_pairs(fold(a), fold(b)), y, add);
      put(add_pairs(fold(c), fold(d)), y + 2, add);
    }
  }

 private:
  DSV4_LANE half fold(vec v) {
    if constexpr (sizeof(T) == 4)
      return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    else
      return __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
  }
  DSV4_LANE half add_pairs(half a, half b) {
    if constexpr (sizeof(T) == 4)
      return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
    else
      return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  }
  DSV4_LANE void put(half sum, T* y, bool add) {
    if (add) {
      half before;
      std::memcpy(&before, y, sizeof before);
      sum += before;
    }
    std::memcpy(y, &sum, sizeof sum);
  }
};

#define DSV4_TARGET [[gnu::target("avx2,fma,f16c")]] inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#include <dsv4/ops/cpu/softmax_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx2
#endif
