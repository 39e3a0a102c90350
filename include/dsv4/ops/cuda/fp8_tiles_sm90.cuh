// SPDX-License-Identifier: Apache-2.0
/// Tiles of FP8 matrices on their way to Hopper's FP8 matrix units.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemm_tiles_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>

namespace dsv4::detail {

struct gemm_fp8_shape {
  static constexpr int columns = 256, stages = 3, threads = 384;
  static constexpr int producer_registers = 72, consumer_registers = 216;
  static constexpr int part = 64;  ///< columns of a product; one is scaled while the next is under way
  /// Bytes from row to row of y in shared memory: rows of a fragment lie in different banks.
  static constexpr int y_pitch = columns * 2 + 16;
};

struct alignas(1024) gemm_fp8_memory {
  using shape = gemm_fp8_shape;
  std::uint8_t x[shape::stages][gemm_rows_sm90 * gemm_fp8_depth];
  std::uint8_t weight[shape::stages][shape::columns * gemm_fp8_depth];
  std::uint8_t y[8][16 * shape::y_pitch];  ///< each warp's 16 rows
  float x_scale[shape::stages][gemm_rows_sm90];
  float weight_scale[shape::stages][2];  ///< of either half of the columns
  int last[shape::stages];               ///< whether it is the last pass over these channels
  phase_barrier full[shape::stages], empty[shape::stages];
  int first_tile[most_gemm_groups + 1];
};

/// Copies 128 channels of `Rows` rows after 128 others, by 128 threads: thread t has 16 of each 64 channels
/// of rows t / 4, t / 4 + 32, ... Beyond the last row, which makes what is not stored, the last again.
template <int Rows>
struct row_copies {
  static constexpr int count = Rows / 32;
  const std::uint8_t* from[count];
  /// Of the `rows` rows that begin at `first`, `bytes` apart.
  __device__ row_copies(const std::uint8_t* first, std::int64_t rows, std::int64_t bytes, int thread) {
#pragma unroll
    for (int i = 0; i < count; ++i)
      from[i] = first + min(std::int64_t{thread / 4 + 32 * i}, rows - 1) * bytes + 16 * (thread % 4);
  }
  /// Where a thread writes in a tile; its other 64 channels are at `^ 64`, the rows 32 further 32 rows on.
  __device__ static std::uint32_t place(int thread) { return tile_offset(thread / 4, thread % 4); }
  /// `columns`: how many channels there are from this thread's first on.
  __device__ void copy(std::uint32_t to, int columns) const {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < count; ++i)
        copy_16((to ^ 64 * j) + 32 * gemm_fp8_depth * i, from[i] + 64 * j, columns > 64 * j);
  }
  __device__ void next() {
#pragma unroll
    for (int i = 0; i < count; ++i) from[i] += gemm_fp8_depth;
  }
};

/// Brings tiles of a weight matrix to shared memory, from row `row` on, by 128 threads: bring() makes one
/// pass over the 128 channels of a block, and tells whether it was the last; next() goes on to the next
/// block.
struct fp8_tiles {
  using matrix = block_scaled_matrix<const fp8_weight, space::device>;
  const matrix& m;
  row_copies<256> copies;
  int row, thread, block = 0, pass = 0;
  int before;             ///< rows of the first row of blocks that lie before the tile
  e8m0 scale, following;  ///< of half `thread % 2`; of this block and the next

  __device__ fp8_tiles(const matrix& weight, int row_, int thread_)
      : m(weight),
        copies(weight.row(row_), weight.extent[0] - row_, weight.row_stride, thread_),
        row(row_),
        thread(thread_),
        before(static_cast<int>((weight.skipped_rows + row_) % fp8_weight::block_rows)),
        scale(scale_of(thread_ % 2, 0)) {}

  __device__ bool bring(int stage, gemm_fp8_memory& to) {
    const int columns = static_cast<int>(m.extent[1]) - block * gemm_fp8_depth - 16 * (thread % 4);
    const std::uint32_t at = shared_address(to.weight[stage]) + copies.place(thread);
    if (before == 0) {
      following = scale_of(thread % 2, 1);
      copies.copy(at, columns);
      if (thread < 2) to.weight_scale[stage][thread] = static_cast<float>(scale);
      return true;
    }
    // A half crosses two rows of blocks, one in each pass; the other's rows are zero. Not by a NaN, which
    // then is in the codes.
    const float scales[] = {static_cast<float>(scale_of(0, 0)), static_cast<float>(scale_of(1, 0))};
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < copies.count; ++i) {
        const std::uint32_t place = (at ^ 64 * j) + 32 * gemm_fp8_depth * i;
        const bool own = columns > 64 * j && (before + (thread / 4 + 32 * i) % 128) / 128 == pass;
        if (own && isnan(scales[i / 4]))
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(place), "r"(0x7F7F7F7F) : "memory");
        else
          copy_16(place, copies.from[i] + 64 * j, own);
      }
    const float own = thread == 0 ? scales[0] : scales[1];
    if (thread < 2) to.weight_scale[stage][thread] = isnan(own) ? 1.0f : own;
    fence_async_shared();
    return ++pass == 2;
  }
  __device__ void next() { ++block, pass = 0, scale = following, copies.next(); }

 private:
  /// The scale of half `half` in this pass, `further` blocks on; any where there is nothing.
  __device__ e8m0 scale_of(int half, int further) const {
    const std::int64_t r = row + 128 * half + (pass ? 128 - before : 0);
    return r < m.extent[0] && (block + further) * gemm_fp8_depth < m.extent[1]
               ? m.row_scales(r)[block + further]
               : e8m0();
  }
};

}  // namespace dsv4::detail
