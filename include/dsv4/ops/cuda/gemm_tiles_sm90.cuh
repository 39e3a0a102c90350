// SPDX-License-Identifier: Apache-2.0
/// What the products on Hopper's matrix units share: which tiles there are, in which order, and how their
/// sums get into y.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <algorithm>
#include <cstdint>

namespace dsv4::detail {

inline constexpr int gemm_rows_sm90 = 128;
inline constexpr int most_gemm_groups = 1024;
inline constexpr int gemm_fp8_depth = 128;  ///< channels of a tile's operands in FP8

/// The tiles of 128 x `Columns` of all groups' y. Those of one group follow one another down bands of eight,
/// so that rows and weights are used again while the L2 cache has them.
template <int Columns, class Problem>
class gemm_tile_order {
 public:
  /// How many tiles of rows lie before each group's, to `first`, which has groups + 1 places: by one warp.
  __device__ static void sum_up(const Problem& p, int* first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int before = 0;
    for (int base = 0; base < p.groups; base += 32) {
      const int g = base + lane;
      const std::int64_t rows = g >= p.groups ? 0
                                : p.offsets   ? p.offsets[g + 1] - p.offsets[g]
                                              : p.y.extent[0];
      const int through = warp_sum_through(static_cast<int>((rows + gemm_rows_sm90 - 1) / gemm_rows_sm90));
      if (g < p.groups) first[g + 1] = before + through;
      before += __shfl_sync(0xffffffffu, through, 31);
    }
    if (lane == 0) first[0] = 0;
  }

  /// From what sum_up made.
  __device__ gemm_tile_order(const Problem& p, const int* first)
      : p_(p), first_(first), across_(static_cast<int>((p.y.extent[1] + Columns - 1) / Columns)) {}

  __device__ int count() const { return first_[p_.groups] * across_; }

  struct place {
    int group;
    std::int64_t row, rows;  ///< of x and y; rows of the group from `row` on
    int column;
  };
  __device__ place operator[](int tile) const {
    int low = 0, high = p_.groups;  // first_[low] <= row of tiles < first_[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_[middle] <= tile / across_ ? low : high) = middle;
    }
    const std::int64_t begin = p_.offsets ? p_.offsets[low] : 0,
                       end = p_.offsets ? p_.offsets[low + 1] : p_.y.extent[0];
    const int own = tile - first_[low] * across_, band = own / (8 * across_),
              height = min(8, first_[low + 1] - first_[low] - 8 * band), in_band = own % (8 * across_);
    const std::int64_t row = begin + std::int64_t{8 * band + in_band % height} * gemm_rows_sm90;
    return {low, row, end - row, in_band / height * Columns};
  }

 private:
  const Problem& p_;
  const int* first_;
  int across_;
};

/// Blocks for all tiles of a problem: at most one per multiprocessor.
template <int Columns, class Problem>
dim3 gemm_grid_sm90(const exec::cuda& p, const Problem& problem) {
  const std::int64_t down =
      ceil_div(problem.y.extent[0], gemm_rows_sm90) + (problem.offsets ? problem.groups : 0);
  const std::int64_t most =
      down * ceil_div(problem.y.extent[1], Columns) * (problem.offsets ? 1 : problem.groups);
  return dim3(static_cast<unsigned>(std::min<std::int64_t>(most, p.device().multiprocessors)));
}

/// Whether elements of y can be accessed two at a time.
template <class T>
__host__ __device__ bool in_pairs(const matrix_view<T, space::device>& y, std::int64_t batch) {
  return y.extent[1] % 2 == 0 && y.stride[0] % 2 == 0 && batch % 2 == 0;
}

/// Whether rows of y can be written in pieces of 16 bytes.
template <class T>
__host__ __device__ bool in_16(const matrix_view<T, space::device>& y, std::int64_t batch) {
  constexpr int n = 16 / sizeof(T);
  return reinterpret_cast<std::uintptr_t>(y.data) % 16 == 0 && y.extent[1] % n == 0 && y.stride[0] % n == 0 &&
         batch % n == 0;
}

/// A thread's part of a tile of y, from row `row` and column `column` on: y = sums, or y += sums.
template <int Columns, class T, class Problem>
__device__ __forceinline__ void store_sums(const Problem& p, std::int64_t row, std::int64_t rows, int column,
                                           T* y, float (&sums)[Columns / 2]) {
  const int columns = static_cast<int>(p.y.extent[1]);
  if (in_pairs(p.y, p.y_batch) && column - column % 8 + Columns <= columns) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + 8 * h >= rows) continue;
      auto* const to = reinterpret_cast<pack<T, 2>*>(y + (row + 8 * h) * p.y.stride[0] + column);
      if (p.add) {
#pragma unroll
        for (int first = 0; first < Columns / 8; first += 16) {  // as many loads under way as registers allow
          pack<T, 2> was[16];
#pragma unroll
          for (int j = 0; j < 16; ++j) was[j] = to[4 * (first + j)];
#pragma unroll
          for (int j = 0; j < 16; ++j) {
            sums[4 * (first + j) + 2 * h] += widened<float>(was[j].value[0]);
            sums[4 * (first + j) + 2 * h + 1] += widened<float>(was[j].value[1]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < Columns / 8; ++j)
        to[4 * j] = {{narrowed<T>(sums[4 * j + 2 * h]), narrowed<T>(sums[4 * j + 2 * h + 1])}};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < Columns / 2; ++i) {
    const std::int64_t r = row + i / 2 % 2 * 8;
    const int c = column + i / 4 * 8 + i % 2;
    if (r >= rows || c >= columns) continue;
    T& to = y[r * p.y.stride[0] + c];
    to = narrowed<T>((p.add ? widened<float>(to) : 0.0f) + sums[i]);
  }
}

}  // namespace dsv4::detail
