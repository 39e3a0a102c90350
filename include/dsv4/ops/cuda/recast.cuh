// SPDX-License-Identifier: Apache-2.0
/// MXFP4 to FP8 on the GPU, tile by tile, the same bytes as on the host.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/recast.hpp>

namespace dsv4 {

namespace detail {
/// Block (tile of a row, row of tiles). A thread has every 256th group of 32 values.
template <int Group>
__global__ void __launch_bounds__(256)
    recast_kernel(block_scaled_matrix<const mxfp4, space::device> fp4, recast_rule rule,
                  block_scaled_matrix<fp8_weight, space::device> fp8,
                  vector_view<std::int64_t, space::device> violations) {
  wait_for_previous_kernels();
  __shared__ int lowest, highest, nan;
  const std::int64_t r0 = std::int64_t{blockIdx.y} * fp8_weight::block_rows,
                     c0 = std::int64_t{blockIdx.x} * fp8_weight::block_columns;
  const std::int64_t r1 = min(r0 + fp8_weight::block_rows, fp4.extent[0]),
                     c1 = min(c0 + fp8_weight::block_columns, fp4.extent[1]);
  const int per_row = static_cast<int>((c1 - c0 + Group - 1) / Group),
            groups = static_cast<int>(r1 - r0) * per_row;
  if (threadIdx.x == 0) lowest = 255, highest = -1, nan = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < groups; i += 256) {
    const std::int64_t r = r0 + i / per_row, c = c0 + i % per_row * Group;
    const e8m0 scale = fp4.row_scales(r)[c / Group];
    if (scale.is_nan()) {
      atomicOr(&nan, 1);
      continue;
    }
    bool zero = rule == recast_rule::exact;
    for (std::int64_t j = c; zero && j < min(c + Group, c1); ++j)
      zero = (mxfp4::get(fp4.row(r), j).bits & 7) == 0;
    if (zero) continue;
    atomicMin(&lowest, static_cast<int>(scale.bits));
    atomicMax(&highest, static_cast<int>(scale.bits));
  }
  __syncthreads();
  const int high = highest < 0 ? 6 : highest, low = highest < 0 ? 6 : lowest;  // all zero: any scale does
  const int tile = max(high - 6, 0);
  if (nan || low - tile < (rule == recast_rule::exact ? -8 : -5)) {
    if (threadIdx.x == 0) atomicAdd(reinterpret_cast<unsigned long long*>(&violations(blockIdx.y)), 1ull);
    return;
  }
  if (threadIdx.x == 0)
    fp8.row_scales(r0)[c0 / fp8_weight::block_columns] = e8m0::from_bits(static_cast<std::uint8_t>(tile));
  for (int i = static_cast<int>(threadIdx.x); i < groups; i += 256) {
    const std::int64_t r = r0 + i / per_row, c = c0 + i % per_row * Group;
    const int k = fp4.row_scales(r)[c / Group].bits - tile;
    for (std::int64_t j = c; j < min(c + Group, c1); ++j) {
      const float value = static_cast<float>(mxfp4::get(fp4.row(r), j));
      // A zero keeps its sign; its block's exponent may be anything.
      fp8.row(r)[j] = e4m3(value == 0 ? value : ldexpf(value, k)).bits;
    }
  }
}

template <int Threads>
__global__ void __launch_bounds__(Threads)
    clear_counts_kernel(vector_view<std::int64_t, space::device> counts) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < counts.extent[0]; i += global_threads()) counts(i) = 0;
}
}  // namespace detail

template <>
struct kernel<recast<space::device>, exec::cuda> {
  using op = recast<space::device>;
  static void forward(const exec::cuda& p, const op::inputs& in, const op::outputs& out) {
    p.launch("recast", detail::clear_counts_kernel<256>, detail::loop_grid(p, out.violations.extent[0], 256),
             256, 0, out.violations);
    p.launch("recast", detail::recast_kernel<mxfp4::block_columns>,
             dim3(static_cast<unsigned>(fp8_weight::scale_columns(in.fp4.extent[1])),
                  static_cast<unsigned>(fp8_weight::scale_rows(in.fp4.extent[0]))),
             256, 0, in.fp4, in.rule, out.fp8, out.violations);
  }
};

}  // namespace dsv4
