// SPDX-License-Identifier: Apache-2.0
/// What the kernels share: accumulators, vectors of elements, sums over warps and blocks.
#pragma once

#include <dsv4/exec/cuda.cuh>
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/fp16.hpp>
#include <dsv4/tensor/view.hpp>

#include <algorithm>
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <limits>
#include <type_traits>

namespace dsv4::detail {

/// What sums of `T` are kept in.
template <class T>
using accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// `value` in the wider type, exactly.
template <class A, class T>
__device__ __forceinline__ A widened(T value) {
  if constexpr (std::is_same_v<T, fp16>)
    return static_cast<A>(__half2float(__ushort_as_half(value.bits)));
  else
    return static_cast<A>(value);
}
/// `value` rounded to the nearest `T`.
template <class T, class A>
__device__ __forceinline__ T narrowed(A value) {
  if constexpr (std::is_same_v<T, bf16> && std::is_same_v<A, float>)
    return bf16::from_bits(__bfloat16_as_ushort(__float2bfloat16_rn(value)));
  else if constexpr (std::is_same_v<T, fp16> && std::is_same_v<A, float>)
    return fp16::from_bits(__half_as_ushort(__float2half_rn(value)));
  else
    return static_cast<T>(value);
}

// The members of std::numeric_limits are host functions to nvcc; constants are not.
template <class A>
inline constexpr A infinity = std::numeric_limits<A>::infinity();
template <class A>
inline constexpr A not_a_number = std::numeric_limits<A>::quiet_NaN();

/// `N` elements that are loaded and stored at once.
template <class T, int N>
struct alignas(sizeof(T) * N) pack {
  T value[N];
};
/// As many elements as one 16-byte access moves.
template <class T>
inline constexpr int vector_width = 16 / static_cast<int>(sizeof(T));

/// Whether rows of these views can be walked in vectors.
template <class V>
bool vectorisable(const V& v) {
  using T = typename V::value_type;
  constexpr std::int64_t n = vector_width<T>;
  bool good = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && v.extent[V::rank - 1] % n == 0;
  for (int axis = 0; axis + 1 < V::rank; ++axis)
    good = good && (v.stride[axis] % n == 0 || v.extent[axis] == 1);
  return good;
}
template <class... V>
bool all_vectorisable(const V&... views) {
  return (vectorisable(views) && ...);
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Blocks for a loop over `count` items by all threads of the grid: enough to fill the device, no more.
inline dim3 loop_grid(const exec::cuda& p, std::int64_t count, int threads) {
  const std::int64_t most = std::int64_t{p.device().multiprocessors} * (2048 / threads) * 4;
  return dim3(static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(count, threads), 0, most)));
}
__device__ __forceinline__ std::int64_t global_thread() {
  return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t global_threads() { return std::int64_t{gridDim.x} * blockDim.x; }

/// The sum over this lane and those before it.
template <class A>
__device__ __forceinline__ A warp_sum_through(A value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const A other = __shfl_up_sync(0xffffffffu, value, step);
    if (static_cast<int>(threadIdx.x) % 32 >= step) value += other;
  }
  return value;
}

/// The sum over the warp, in every lane.
template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
template <class A>
__device__ __forceinline__ A warp_max(A value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, step);
    value = other > value ? other : value;
  }
  return value;
}
/// The sum over the block, in every thread, in the same order in every run; `partial` has room for one value
/// per warp. All threads must call it, and it may be called again at once.
template <class A>
__device__ A block_sum(A value, A* partial) {
  value = warp_sum(value);
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = (static_cast<int>(blockDim.x) + 31) / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[warp] = value;
  __syncthreads();
  A sum = 0;
  for (int i = 0; i < warps; ++i) sum += partial[i];
  return sum;
}

/// c += a b: 16 x 16 times 16 x 8, in the layout of mma.m16n8k16.
__device__ __forceinline__ void multiply_16x8(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                              std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                              std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The same with E4M3, 32 channels: a0 of row g, a1 of row g + 8 and b0 have channels 4 l to 4 l + 3 of lane
/// 4 g + l, a2, a3 and b1 those 16 further.
__device__ __forceinline__ void multiply_16x8_e4m3(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                                   std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                                   std::uint32_t b1) {
#if __CUDA_ARCH__ >= 890
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

}  // namespace dsv4::detail
