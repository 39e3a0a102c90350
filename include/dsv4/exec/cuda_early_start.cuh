// SPDX-License-Identifier: Apache-2.0
/// Starting the blocks of a kernel while the kernel before it in the stream ends (on Hopper and later).
#pragma once

#include <dsv4/exec/cuda_error.cuh>

#include <cuda_runtime.h>
#include <mutex>
#include <unordered_map>

namespace dsv4 {

/// The first statement of every kernel that exec::cuda::launch queues. Waits until the kernel before has
/// ended and all that it wrote is visible, and only then lets the kernel after this one start. So when a
/// kernel starts, the last but one before it has ended: at most one waits ahead, and a wait for the kernel
/// before is a wait for all of them. Nothing may be read or written before it; prefetches into the L2 cache
/// may.
__device__ __forceinline__ void wait_for_previous_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

namespace exec {

/// Which kernels may start early: those compiled for compute_90 or later, since in others nothing waits. Code
/// for compute_80 that the driver made fit a Hopper device has no wait either, so the device does not tell.
class cuda_early_starts {
 public:
  explicit cuda_early_starts(bool possible) : possible_(possible) {}
  bool possible() const { return possible_; }

  template <class Kernel>
  bool allow(const detail::call_site& where, Kernel* kernel) {
    if (!possible_) return false;
    const std::lock_guard lock(mutex_);
    const auto [at, is_new] = known_.try_emplace(reinterpret_cast<const void*>(kernel), false);
    if (is_new) {
      cudaFuncAttributes a{};
      detail::check_cuda(cudaFuncGetAttributes(&a, kernel), where);
      at->second = a.ptxVersion >= 90;
    }
    return at->second;
  }

 private:
  bool possible_;
  std::mutex mutex_;
  std::unordered_map<const void*, bool> known_;
};

}  // namespace exec

}  // namespace dsv4
