// SPDX-License-Identifier: Apache-2.0
/// Hopper's tensor copies, which one thread asks for, and pairs of blocks that share what is copied.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <source_location>
#include <string_view>
#include <type_traits>

namespace dsv4::detail {

/// Matrices of 16-bit elements as tensor copies see them: (sets, batch, rows, columns), strides in elements
/// and multiples of 8.
struct copied_tensor {
  const void* data;
  std::int64_t columns, rows, batch, sets;
  std::int64_t row_stride, batch_stride, set_stride;
};

/// Describes boxes of `box_rows` rows and `box_columns` columns, which fill 64 or 128 bytes. In shared memory
/// a row's 16-byte columns are XORed with its number, as in `tile_offset`, or `narrow_tile_offset` for 64
/// bytes. What lies outside of a matrix reads as zero and is not written.
template <class E>
CUtensorMap tensor_map(std::string_view where, const copied_tensor& t, int box_columns, int box_rows) {
  // By the runtime, so that programs need not link the driver's library.
  static const auto encode = [&] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
        where);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  const cuuint64_t extents[4] = {static_cast<cuuint64_t>(t.columns), static_cast<cuuint64_t>(t.rows),
                                 static_cast<cuuint64_t>(t.batch), static_cast<cuuint64_t>(t.sets)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(t.row_stride * 2),
                                 static_cast<cuuint64_t>(t.batch_stride * 2),
                                 static_cast<cuuint64_t>(t.set_stride * 2)};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(
      &map, std::is_same_v<E, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
      const_cast<void*>(t.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw cuda_error(where, "no tensor copies of this shape", static_cast<int>(status),
                     std::source_location::current());
  return map;
}

/// Where a box begins.
struct tensor_place {
  int column, row, batch, set;
};

/// The byte offset of 16-byte column `column` of row `row` of a tile whose rows are 64 bytes.
__device__ __forceinline__ std::uint32_t narrow_tile_offset(int row, int column) {
  return static_cast<std::uint32_t>(row * 64 + ((column ^ (row >> 1 & 3)) * 16));
}

/// Brings the description of a tensor near, for copies to come.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
#if DSV4_SM90A
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}
/// A box to shared memory, later; `b` counts its bytes.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap& from, const tensor_place& at,
                                         phase_barrier& b) {
#if DSV4_SM90A
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
      "%5}], [%6];" ::"r"(to),
      "l"(&from), "r"(at.column), "r"(at.row), "r"(at.batch), "r"(at.set), "r"(b.address())
      : "memory");
#endif
}
/// The same to both blocks of the pair: to the same address, counted by the same barrier of each.
__device__ __forceinline__ void copy_box_to_pair(std::uint32_t to, const CUtensorMap& from,
                                                 const tensor_place& at, phase_barrier& b) {
#if DSV4_SM90A
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
      "l"(&from), "r"(at.column), "r"(at.row), "r"(at.batch), "r"(at.set), "r"(b.address()),
      "h"(static_cast<std::uint16_t>(3))
      : "memory");
#endif
}
/// A box from shared to global memory, later, as part of the thread's next group of stores.
__device__ __forceinline__ void store_box(const CUtensorMap& to, const tensor_place& at, std::uint32_t from) {
#if DSV4_SM90A
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&to),
      "r"(at.column), "r"(at.row), "r"(at.batch), "r"(at.set), "r"(from)
      : "memory");
#endif
}
/// Marks a kernel whose blocks come in pairs, which can write to each other's shared memory.
#if DSV4_SM90A || !defined(__CUDA_ARCH__)
#define DSV4_PAIRS __cluster_dims__(2, 1, 1)
#else
#define DSV4_PAIRS
#endif

/// Which block of its pair this is.
__device__ __forceinline__ int rank_in_pair() {
  std::uint32_t rank = 0;
#if DSV4_SM90A
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
/// One arrival at barrier `b` of block `rank` of the pair.
__device__ __forceinline__ void arrive_in_pair(phase_barrier& b, int rank) {
#if DSV4_SM90A
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(b.address()),
      "r"(rank)
      : "memory");
#endif
}
/// Waits for all threads of both blocks.
__device__ __forceinline__ void sync_pair() {
#if DSV4_SM90A
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/// Two elements side by side in a word, the first in its lower half.
template <class E>
__device__ __forceinline__ std::uint32_t packed_pair(float first, float second) {
  std::uint32_t word;
  if constexpr (std::is_same_v<E, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
template <class E>
__device__ __forceinline__ float2 unpacked_pair(std::uint32_t word) {
  const auto half = [](std::uint32_t bits) {
    return widened<float>(E::from_bits(static_cast<std::uint16_t>(bits)));
  };
  return {half(word & 0xffffu), half(word >> 16)};
}

}  // namespace dsv4::detail
