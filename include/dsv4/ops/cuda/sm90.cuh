// SPDX-License-Identifier: Apache-2.0
/// Hopper's own instructions, by name: asynchronous copies, barriers in shared memory, matrix descriptors.
#pragma once

#include <dsv4/exec/cuda.cuh>

#include <cstdint>

/// Whether this pass of the compiler makes code for sm_90a. Kernels whose bodies need it are empty in others.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DSV4_SM90A 1
#else
#define DSV4_SM90A 0
#endif

namespace dsv4::detail {

/// Whether `kernel`, whose body is under DSV4_SM90A, can run here: an empty one needs next to no registers.
template <class Kernel>
bool has_sm90a_code(const exec::cuda& p, Kernel* kernel) {
  if (p.device().major != 9) return false;
  cudaFuncAttributes a;
  check_cuda(cudaFuncGetAttributes(&a, kernel), "has_sm90a_code");
  return a.numRegs >= 64;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// 16 bytes from global to shared memory, later; zeros where not `valid`.
__device__ __forceinline__ void copy_16(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
/// Makes a group of the copies asked for since the last one.
__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most the `Pending` latest groups of this thread are under way.
template <int Pending>
__device__ __forceinline__ void wait_for_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// `bytes` from shared to global memory, later; a multiple of 16, as both addresses are.
__device__ __forceinline__ void store_bulk(void* to, std::uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
               : "memory");
}
/// Ends a group of stores, which may be empty.
__device__ __forceinline__ void end_store_group() {
#if DSV4_SM90A
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
/// Waits until all but the `Pending` latest groups of this thread have read shared memory.
template <int Pending>
__device__ __forceinline__ void wait_for_stores() {
#if DSV4_SM90A
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
#endif
}

/// Stores four 8 x 8 blocks of 16-bit elements, held as a product's sums are: a lane has columns 2 (lane % 4)
/// and the next of row lane / 4. Lanes 8 i + r give the address of row r of block i (of column r,
/// transposed).
template <bool Transposed>
__device__ __forceinline__ void store_blocks(std::uint32_t to, const std::uint32_t (&v)[4]) {
#if DSV4_SM90A
  if constexpr (Transposed)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v[0]),
                 "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
#endif
}

/// A barrier in shared memory. Its phases alternate between 0 and 1; it begins in 0.
struct phase_barrier {
  std::uint64_t word;

  __device__ std::uint32_t address() const { return shared_address(&word); }
  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  /// One arrival, when all copies that this thread has asked for so far have landed.
  __device__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address()) : "memory");
  }
  /// Returns once the phase of parity `parity` is over.
  __device__ void wait(int parity) {
    std::uint32_t over = 0;
    do {
      asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                   : "=r"(over)
                   : "r"(address()), "r"(parity)
                   : "memory");
    } while (!over);
  }
};
/// One arrival at `b`, whose phase is not over before `bytes` have landed too.
__device__ __forceinline__ void arrive_expecting(phase_barrier& b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(b.address()), "r"(bytes) : "memory");
}
/// Makes initialised barriers known to the asynchronous units.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Orders ordinary accesses to shared memory before those of the matrix units that follow.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Barrier `id` for `threads` threads of the block, in whole warps.
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int Registers>
__device__ __forceinline__ void give_registers() {
#if DSV4_SM90A
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
__device__ __forceinline__ void take_registers() {
#if DSV4_SM90A
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

/// Where a tile lies: rows of 128 bytes, 16-byte columns XORed with the row's number modulo 8. `group` is the
/// distance in bytes between groups of eight rows, `panel` that between tiles 128 bytes apart in the long
/// axis (read with N contiguous only). Tiles begin at multiples of 1024 bytes.
__device__ __forceinline__ std::uint64_t tile_descriptor(std::uint32_t address, int group, int panel) {
  return static_cast<std::uint64_t>((address & 0x3FFFF) >> 4) | static_cast<std::uint64_t>(panel >> 4) << 16 |
         static_cast<std::uint64_t>(group >> 4) << 32 | std::uint64_t{1} << 62;
}
/// The byte offset of 16-byte column `column` of row `row` in such a tile.
__device__ __forceinline__ std::uint32_t tile_offset(int row, int column) {
  return static_cast<std::uint32_t>(row * 128 + ((column ^ (row & 7)) * 16));
}

/// Orders register and shared-memory accesses before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
#if DSV4_SM90A
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
#if DSV4_SM90A
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Waits until at most `Pending` groups are under way.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
#if DSV4_SM90A
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
}
/// Keeps the compiler from moving uses of sums across a wait.
template <int N>
__device__ __forceinline__ void keep(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Four, or two, 8 x 8 blocks of 16-bit elements, of which lanes 8 i + r give the addresses of row r of block
/// i; `Transposed` hands out the columns.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
template <bool Transposed>
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[2], std::uint32_t address) {
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}

}  // namespace dsv4::detail
