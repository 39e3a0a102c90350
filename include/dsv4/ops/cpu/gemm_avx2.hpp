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
  static constexpr int tile_rows = 3, outer_rows = 6, outer_vectors = 2;
  static constexpr std::int64_t outer_depth = 256;
};

#define DSV4_TARGET [[gnu::target("avx2,fma,f16c")]] inline
#include <dsv4/ops/cpu/gemm_tile.hpp>
#include <dsv4/ops/cpu/softmax_tile.hpp>
#undef DSV4_TARGET
#undef DSV4_LANE

}  // namespace dsv4::detail::avx2
#endif
