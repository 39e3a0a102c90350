// SPDX-License-Identifier: Apache-2.0
/// The policy that computes on an NVIDIA GPU, on one stream.
#pragma once

#include <dsv4/exec/cuda_early_start.cuh>
#include <dsv4/exec/cuda_error.cuh>
#include <dsv4/exec/cuda_matmul.cuh>
#include <dsv4/exec/cuda_memory.cuh>
#include <dsv4/exec/policy.hpp>

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <memory>
#include <nvtx3/nvToolsExt.h>
#include <optional>
#include <source_location>
#include <string_view>
#include <utility>

namespace dsv4::exec {

/// What a launcher asks of the device.
struct cuda_device {
  int index = 0;
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  std::size_t shared_memory_per_block = 0;  ///< the most that a block can ask for
  std::size_t l2_bytes = 0;

  /// Of the current device. Throws cuda_error where there is none, or too old a driver.
  static cuda_device current(const std::source_location& at = std::source_location::current()) {
    detail::expect_cuda_device(at);
    cuda_device d;
    detail::check_cuda(cudaGetDevice(&d.index), "exec::cuda", at);
    const auto get = [&](cudaDeviceAttr attribute) {
      int value = 0;
      detail::check_cuda(cudaDeviceGetAttribute(&value, attribute, d.index), "exec::cuda", at);
      return value;
    };
    d.major = get(cudaDevAttrComputeCapabilityMajor), d.minor = get(cudaDevAttrComputeCapabilityMinor);
    d.multiprocessors = get(cudaDevAttrMultiProcessorCount);
    d.shared_memory_per_block = static_cast<std::size_t>(get(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    d.l2_bytes = static_cast<std::size_t>(get(cudaDevAttrL2CacheSize));
    return d;
  }
};

/// How an op may sum where blocks that run at the same time have terms of one sum.
enum class sum_order {
  fixed,  ///< the same bits in every run
  any     ///< what is ready is added atomically, where an op is faster so: the last bits differ between runs
};

/// A range of a thread's time that profilers show by name (NVTX), or nothing.
class nvtx_range {
 public:
  nvtx_range(const char* name, bool wanted) : open_(wanted) {
    if (open_) nvtxRangePushA(name);
  }
  nvtx_range(const nvtx_range&) = delete;
  nvtx_range& operator=(const nvtx_range&) = delete;
  ~nvtx_range() {
    if (open_) nvtxRangePop();
  }

 private:
  bool open_;
};

/// Runs on one stream of the current device, or beside it where blocks fork(). Every op returns once its
/// kernels are queued: nothing here waits for the device or allocates, so a stream of ops can be captured
/// into a CUDA graph (after one call outside of a capture, which loads the kernels). A cheap handle: copies
/// share stream and scratch memory, so use one policy per stream. Results are the same, bit for bit, in every
/// run on the same device, unless the options ask for sums in any order.
class cuda {
 public:
  static constexpr space memory = space::device;
  static constexpr std::string_view name = "cuda";

  struct options {
    std::size_t scratch_bytes = std::size_t{64} << 20;  ///< for split sums; allocated here, once
    /// Wait after every launch, so that an error of a kernel names the op that ran it.
    bool check_every_launch = false;
    /// Tell profilers which block queues what: NVTX ranges, nested as blocks are, on the thread that queues.
    bool profile_ranges = false;
    /// A kernel's blocks start, and wait, while the kernel before ends. Same results, less time between
    /// kernels.
    bool early_starts = true;
    /// Of sums in backward passes: sparse attention's gradients of keys are faster in any order.
    sum_order sums = sum_order::fixed;
  };

  /// With a stream of its own. Throws cuda_error where there is no GPU, or too old a driver.
  explicit cuda(const options& o = default_options(),
                const std::source_location& at = std::source_location::current())
      : context_(std::make_shared<context>(nullptr, true, o, at)) {}
  /// On the caller's stream, which must outlive the policy.
  explicit cuda(cudaStream_t stream, const options& o = default_options(),
                const std::source_location& at = std::source_location::current())
      : context_(std::make_shared<context>(stream, false, o, at)) {}

  cudaStream_t stream() const { return context_->stream; }
  const cuda_device& device() const { return context_->device; }
  sum_order sums() const { return context_->sums; }
  /// Memory for one op at a time: what it holds is gone when the next op begins.
  std::byte* scratch() const { return context_->scratch.data(); }
  std::size_t scratch_bytes() const { return static_cast<std::size_t>(context_->scratch.size()); }

  /// Waits for all that was queued. Throws cuda_error when a kernel failed.
  void synchronise(const std::source_location& at = std::source_location::current()) const {
    detail::check_cuda(cudaStreamSynchronize(stream()), "exec::cuda::synchronise", at);
  }

  /// A policy for what may run at the same time as what this one is asked for from here to join(), on another
  /// stream, which waits for all that is queued here so far; called again before join(), for all that is
  /// then. The first call makes it, with scratch memory of its own.
  const cuda& fork() const {
    context& c = *context_;
    if (!c.aside) {
      c.forked.emplace(), c.joined.emplace();
      options o;
      o.scratch_bytes = scratch_bytes(), o.check_every_launch = c.check_every_launch;
      o.profile_ranges = c.profile_ranges, o.early_starts = c.early_starts.possible(), o.sums = c.sums;
      c.aside = std::make_unique<cuda>(o);
    }
    wait_for(*c.forked, *this, *c.aside);
    return *c.aside;
  }
  /// What is queued from here on waits for all that fork()'s policy was asked for.
  void join() const { wait_for(*context_->joined, *context_->aside, *this); }

  /// What is queued until the range ends belongs to `name`, where options::profile_ranges asks for that.
  [[nodiscard]] nvtx_range range(const char* name) const { return {name, context_->profile_ranges}; }

  /// Queues kernel<<<grid, block, shared>>>(arguments...) for the op `where`; an empty grid is no launch. The
  /// kernel begins with wait_for_previous_kernels(), or the policy was made without early_starts.
  template <class... Parameters, class... Arguments>
  void launch(const detail::call_site& where, void (*kernel)(Parameters...), dim3 grid, dim3 block,
              std::size_t shared, Arguments&&... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    if (shared > (std::size_t{32} << 10))  // 48 KiB with what the kernel has of its own
      detail::check_cuda(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          where);
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared;
    config.stream = stream();
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    // Only grids that the device holds at once: others gain nothing, and seem to keep the little L1 that a
    // kernel with much shared memory leaves beside it.
    const std::size_t threads = std::size_t{grid.x} * grid.y * grid.z * block.x * block.y * block.z;
    const bool whole = threads <= std::size_t{2048} * static_cast<std::size_t>(device().multiprocessors);
    const bool after_another_stream = std::exchange(context_->waits_for_another_stream, false);
    config.numAttrs = whole && !after_another_stream && context_->early_starts.allow(where, kernel) ? 1 : 0;
    detail::check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), where);
    if (context_->check_every_launch) detail::check_cuda(cudaStreamSynchronize(stream()), where);
  }

  /// y = x weight^T for dense matrices of types that cuBLAS multiplies; see cuda_matmul::run. The last `kept`
  /// bytes of the scratch memory are left alone.
  bool matmul(const detail::call_site& where, const cuda_matmul::problem& m, std::size_t kept = 0) const {
    const bool queued = context_->matmul.run(where, m, stream(), scratch(), scratch_bytes() - kept);
    if (context_->check_every_launch) detail::check_cuda(cudaStreamSynchronize(stream()), where);
    return queued;
  }

 private:
  struct event {
    event() { detail::check_cuda(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming), "exec::cuda"); }
    event(const event&) = delete;
    event& operator=(const event&) = delete;
    ~event() { cudaEventDestroy(handle); }
    cudaEvent_t handle = nullptr;
  };
  /// `later` goes on when `earlier` has done what it was asked for so far. Its next kernel does not start
  /// early: it would be the kernel before that it waits for, not the other stream.
  static void wait_for(const event& e, const cuda& earlier, const cuda& later) {
    detail::check_cuda(cudaEventRecord(e.handle, earlier.stream()), "exec::cuda");
    detail::check_cuda(cudaStreamWaitEvent(later.stream(), e.handle, 0), "exec::cuda");
    later.context_->waits_for_another_stream = true;
  }

  // A default argument may not use the defaults of a nested class before the outer one is complete.
  static options default_options();

  struct context {
    context(cudaStream_t s, bool own, const options& o, const std::source_location& at)
        : device(cuda_device::current(at)),
          stream(s),
          owns_stream(own),
          check_every_launch(o.check_every_launch),
          profile_ranges(o.profile_ranges),
          early_starts(o.early_starts && device.major >= 9),
          sums(o.sums),
          scratch(static_cast<std::int64_t>(o.scratch_bytes)) {
      if (own)
        detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "exec::cuda", at);
    }
    context(const context&) = delete;
    context& operator=(const context&) = delete;
    ~context() {
      if (owns_stream) cudaStreamDestroy(stream);
    }
    cuda_device device;
    cudaStream_t stream;
    bool owns_stream, check_every_launch, profile_ranges;
    cuda_early_starts early_starts;
    sum_order sums;
    device_buffer<std::byte> scratch;
    cuda_matmul matmul;
    bool waits_for_another_stream = false;
    std::optional<event> forked, joined;
    std::unique_ptr<cuda> aside;  // what fork() returns
  };
  std::shared_ptr<context> context_;
};

inline cuda::options cuda::default_options() { return {}; }

}  // namespace dsv4::exec
