// SPDX-License-Identifier: Apache-2.0
/// What Hopper's kernels for four bf16 streams share: a ring of tokens in shared memory that one thread fills
/// by bulk copies, sums over warps, and Sinkhorn in the registers of one warp.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>

namespace dsv4::detail {

/// Whether one of these kernels, whose bodies are under DSV4_SM90A, can run here. They need fewer registers
/// than products of matrices do, and yet more than an empty one.
template <class Kernel>
bool has_streams_code(const exec::cuda& p, Kernel* kernel) {
  if (p.device().major != 9) return false;
  cudaFuncAttributes a;
  check_cuda(cudaFuncGetAttributes(&a, kernel), "has_streams_code");
  return a.numRegs >= 32;
}

/// `bytes`, a multiple of 16, from global to shared memory, later; `b` counts them.
__device__ __forceinline__ void copy_bulk(std::uint32_t to, const void* from, int bytes, phase_barrier& b) {
#if DSV4_SM90A
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(b.address())
      : "memory");
#endif
}

/// A ring of slots that one thread fills, item after item. Item i lies in slot i % slots; barriers that tell
/// of its arrival are twice as many, so that two groups which take turns each wait for their own.
inline constexpr int most_slots = 8;
struct ring_barriers {
  phase_barrier full[2 * most_slots], empty[most_slots];
  /// By one thread, before the others pass a barrier; `readers` arrive at `empty`.
  __device__ void init(int readers) {
    for (int i = 0; i < 2 * most_slots; ++i) full[i].init(1);
    for (int i = 0; i < most_slots; ++i) empty[i].init(readers);
    fence_barrier_init();
  }
  /// The barrier of item i, once its slot is free; its phase waits for `bytes`.
  __device__ phase_barrier& fill(int i, int slots, int bytes) {
    empty[i % slots].wait(i / slots % 2 ^ 1);
    phase_barrier& b = full[i % (2 * slots)];
    arrive_expecting(b, bytes);
    return b;
  }
  __device__ void wait(int i, int slots) { full[i % (2 * slots)].wait(i / (2 * slots) % 2); }
  /// By every reader.
  __device__ void release(int i, int slots) { empty[i % slots].arrive(); }
};

/// Whether Hopper's kernels take these: four streams of bf16, dense within a token.
template <class V>
bool four_dense_streams(const V& x) {
  return x.extent[1] == 4 && x.extent[2] % 8 == 0 && x.extent[2] > 0 && x.extent[2] <= 8192 &&
         x.stride[1] == x.extent[2] && vectorisable(x);
}

/// How many slots of `bytes` a block has room for beside `fixed` bytes.
inline int ring_slots(const exec::cuda& p, std::size_t fixed, int bytes) {
  const std::size_t room = p.device().shared_memory_per_block - (fixed + 1023) / 1024 * 1024;
  return std::min(static_cast<int>(room) / bytes, most_slots);
}

/// The sums over the warp of N numbers per lane, by halves: lane l gets that of number `index`, if `valid`.
template <int N>
struct scattered_sum {
  float value;
  int index = 0;
  bool valid = true;

  __device__ explicit scattered_sum(float (&v)[N]) {
    halve<N, 16>(v, N);
    value = v[0];
  }

 private:
  /// Of v, M long, the first `count` are numbers.
  template <int M, int Lanes>
  __device__ __forceinline__ void halve(float* v, int count) {
    constexpr int half = (M + 1) / 2;
    const bool upper = (threadIdx.x & Lanes) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float high = half + i < M ? v[half + i < M ? half + i : 0] : 0.0f;
      const float other = __shfl_xor_sync(0xffffffffu, upper ? v[i] : high, Lanes);
      v[i] = (upper ? high : v[i]) + other;
    }
    count = upper ? count - half : min(count, half);
    index += upper ? half : 0;
    if constexpr (Lanes > 1)
      halve<half, Lanes / 2>(v, count);
    else
      valid = count > 0;
  }
};

/// The sum over the four lanes of an entry's row (by lanes j 4 + k, over k) or column (over j).
__device__ __forceinline__ float line_sum(float v, bool row) {
  const int step = row ? 1 : 4;
  const float a = __shfl_xor_sync(0xffffffffu, v, step), b = __shfl_xor_sync(0xffffffffu, v, 2 * step),
              c = __shfl_xor_sync(0xffffffffu, v, 3 * step);
  return (v + a) + (b + c);
}
/// 1 / v, v not subnormal, to a unit in the last place.
__device__ __forceinline__ float inverse(float v) {
  float i;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(i) : "f"(v));
  return i;
}
__device__ __forceinline__ float gate_sigmoid(float v) { return inverse(1.0f + expf(-v)); }

/// Sinkhorn over a 4 x 4 matrix, lane 4 j + k bringing entry (j, k) and lane 16 + 4 j + k the same. The
/// softmax is left in `softmax`, the divisors of every pass in `divisors` (16 per pass) where there is one.
__device__ __forceinline__ float sinkhorn_4(float value, int iterations, float eps, float& softmax,
                                            float* divisors) {
  const int own = static_cast<int>(threadIdx.x) % 32;
  float top = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
  const float e = expf(value - top);
  softmax = e * inverse(line_sum(e, true));
  float v = softmax + eps;
  const int passes = 2 * iterations - 1;  // columns first and last
  for (int pass = 0; pass < passes; ++pass) {
    const float divisor = eps + line_sum(v, pass % 2 == 1);
    v *= inverse(divisor);
    if (divisors && own < 16) divisors[16 * pass + own] = divisor;
  }
  return v;
}

/// The gradient of sinkhorn_4's input by that of its result. The results of passes are made again from the
/// last one and the divisors.
__device__ __forceinline__ float sinkhorn_4_backward(float value, float gradient, float softmax,
                                                     int iterations, const float* divisors) {
  const int own = static_cast<int>(threadIdx.x) % 16;
#pragma unroll 4
  for (int pass = 2 * iterations - 2; pass >= 0; --pass) {
    const float divisor = divisors[16 * pass + own];
    gradient = (gradient - line_sum(gradient * value, pass % 2 == 1)) * inverse(divisor);
    value *= divisor;
  }
  return softmax * (gradient - line_sum(gradient * softmax, true));
}

/// Eight channels of bf16, and their values.
using octet = pack<bf16, 8>;
__device__ __forceinline__ octet shared_octet(const unsigned char* row, int i) {
  return reinterpret_cast<const octet*>(row)[i];
}
__device__ __forceinline__ float channel(const octet& v, int c) { return widened<float>(v.value[c]); }

}  // namespace dsv4::detail
