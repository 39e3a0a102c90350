// SPDX-License-Identifier: Apache-2.0
/// Products X X^T on Hopper's matrix units: the tiles of one triangle are computed, and written twice.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace dsv4::detail {

/// y[b] = scale x[b] x[b]^T + c_scale c[b], where c is symmetric and laid out as y; no c: null.
struct symmetric_product {
  const bf16* x;
  std::int64_t x_stride, x_batch;  ///< multiples of 8
  std::int64_t rows, inner;        ///< inner is a multiple of 8
  bf16* y;
  std::int64_t y_stride, y_batch;  ///< multiples of 8
  const bf16* c;
  float scale, c_scale;
  int batch;

  /// Each tile's inner extent is cut into so many parts of `part_steps` steps of 64; with more than one,
  /// their sums go to `partial`, a tile each.
  int parts = 1, part_steps = 0;
  float* partial = nullptr;

  static constexpr int tile_rows = 128, tile_columns = 256, stages = 4;
  __host__ __device__ int row_tiles() const { return static_cast<int>((rows + tile_rows - 1) / tile_rows); }
  /// Tiles that reach the lower triangle: i / 2 + 1 of every row i of tiles.
  __host__ __device__ int tiles() const { return tiles_before(row_tiles()); }
  __host__ __device__ static int tiles_before(int row_tile) {
    return (row_tile / 2 + row_tile % 2) * (row_tile / 2 + 1);
  }
  /// The row of tiles that tile `tile` of a matrix is in.
  __device__ static int row_tile_of(int tile) {
    int i = 0;
    while (tiles_before(i + 1) <= tile) ++i;
    return i;
  }
};
static_assert(symmetric_product::tile_columns == 2 * symmetric_product::tile_rows);

struct alignas(1024) symmetric_product_memory {
  std::uint8_t left[symmetric_product::stages][symmetric_product::tile_rows * 128];
  std::uint8_t right[symmetric_product::stages][symmetric_product::tile_columns * 128];
  phase_barrier full[symmetric_product::stages], empty[symmetric_product::stages];
};

/// Asks for 64 columns of `Rows` rows, of which `rows` and `columns` are left; zeros beyond. By 128 threads.
template <int Rows>
__device__ __forceinline__ void copy_tile(const bf16* from, std::int64_t stride, int rows, int columns,
                                          std::uint32_t tile, int thread) {
  const int c = thread % 8;
  const bool inside = 8 * c < columns;
#pragma unroll
  for (int i = 0; i < Rows / 16; ++i) {
    const int r = thread / 8 + 16 * i;
    const bool valid = inside && r < rows;
    copy_16(tile + tile_offset(r, c), valid ? from + r * stride + 8 * c : from, valid);
  }
}

/// y(r, c) and y(c, r): `at` is the former's offset in y, `mirrored` the latter's.
__device__ __forceinline__ void store_symmetric(const symmetric_product& p, std::int64_t at,
                                                std::int64_t mirrored, float sum) {
  float value = p.scale * sum;
  if (p.c) value += p.c_scale * static_cast<float>(p.c[at]);
  p.y[at] = p.y[mirrored] = narrowed<bf16>(value);
}

/// As many blocks as multiprocessors, each with every gridDim.x-th part of a tile. Two warpgroups multiply,
/// 64 rows each; the third brings tiles.
template <class Product>
__global__ void __launch_bounds__(384, 1) symmetric_product_kernel(Product p) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  symmetric_product_memory& m =
      *reinterpret_cast<symmetric_product_memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < symmetric_product::stages; ++s) {
      m.full[s].init(256);  // copies and stores of every producing thread
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int tiles = p.tiles(), all_steps = static_cast<int>((p.inner + 63) / 64);
  const std::int64_t units = std::int64_t{tiles} * p.batch * p.parts;

  struct place {
    std::int64_t batch, row, column;
    int first, end;  // steps
  };
  const auto locate = [&](std::int64_t unit) {
    const int part = static_cast<int>(unit % p.parts), tile = static_cast<int>(unit / p.parts % tiles);
    const int i = p.row_tile_of(tile);
    return place{unit / p.parts / tiles, std::int64_t{i} * p.tile_rows,
                 std::int64_t{tile - p.tiles_before(i)} * p.tile_columns, part * p.part_steps,
                 min(all_steps, (part + 1) * p.part_steps)};
  };

  int step = 0;  // counts through all units
  if (group == 2) {
    give_registers<152>();
    const int own = thread - 256;
    for (std::int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
      const place at = locate(unit);
      const bf16* const x = p.x + at.batch * p.x_batch;
      const bf16 *const left = x + at.row * p.x_stride, *const right = x + at.column * p.x_stride;
      for (int i = at.first; i < at.end; ++i, ++step) {
        const int stage = step % symmetric_product::stages, round = step / symmetric_product::stages;
        if (round > 0) m.empty[stage].wait((round - 1) & 1);
        const int columns = static_cast<int>(p.inner) - 64 * i;
        copy_tile<Product::tile_rows>(left + 64 * i, p.x_stride, static_cast<int>(p.rows - at.row), columns,
                                      shared_address(m.left[stage]), own);
        copy_tile<Product::tile_columns>(right + 64 * i, p.x_stride, static_cast<int>(p.rows - at.column),
                                         columns, shared_address(m.right[stage]), own);
        m.full[stage].arrive_after_copies();
        m.full[stage].arrive();
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<176>();
  const int warp = thread % 128 / 32;
  for (std::int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const place at = locate(unit);
    float sums[128];
    for (int i = at.first; i < at.end; ++i, ++step) {
      const int stage = step % symmetric_product::stages, round = step / symmetric_product::stages;
      m.full[stage].wait(round & 1);
      fence_async_shared();
      const std::uint32_t left = shared_address(m.left[stage]) + 64 * 128 * group,
                          right = shared_address(m.right[stage]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma<256, 0>::run(sums, tile_descriptor(left + 32 * k, 1024, 0),
                           tile_descriptor(right + 32 * k, 1024, 0), i > at.first || k > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the step before has been read once this one alone is under way
      if (i > at.first) m.empty[(step - 1) % symmetric_product::stages].arrive();
    }
    wgmma_wait<0>();
    keep(sums);
    m.empty[(step - 1) % symmetric_product::stages].arrive();
    const int first = 2 * (lane % 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int own = 64 * group + 16 * warp + lane / 4 + 8 * h;
      if (p.parts > 1) {
        float* to = p.partial + (unit * p.tile_rows + own) * p.tile_columns + first;
#pragma unroll
        for (int j = 0; j < 32; ++j)
          *reinterpret_cast<pack<float, 2>*>(to + 8 * j) = {{sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]}};
      } else if (at.row + own < p.rows) {
        // Columns first + 8 j and the next, as far as the diagonal.
        const int diagonal = static_cast<int>(at.row + own - at.column) - first;
        std::int64_t to = at.batch * p.y_batch + (at.row + own) * p.y_stride + at.column + first,
                     mirrored = at.batch * p.y_batch + (at.column + first) * p.y_stride + at.row + own;
#pragma unroll
        for (int j = 0; j < 32; ++j, to += 8, mirrored += 8 * p.y_stride) {
          if (8 * j <= diagonal) store_symmetric(p, to, mirrored, sums[4 * j + 2 * h]);
          if (8 * j + 1 <= diagonal)
            store_symmetric(p, to + 1, mirrored + p.y_stride, sums[4 * j + 2 * h + 1]);
        }
      }
    }
  }
#endif
}

/// Adds up the parts, in order: block (tile, 8 rows), a thread for each column.
template <class Product>
__global__ void __launch_bounds__(256) symmetric_parts_kernel(Product p) {
  wait_for_previous_kernels();
  const int tiles = p.tiles(), tile = static_cast<int>(blockIdx.x) % tiles, i = p.row_tile_of(tile);
  const std::int64_t batch = blockIdx.x / tiles;
  const int column = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.y) * 8;
  const std::int64_t c = std::int64_t{tile - p.tiles_before(i)} * p.tile_columns + column,
                     first = std::int64_t{i} * p.tile_rows + row;
  const float* const partial =
      p.partial + (std::int64_t{blockIdx.x} * p.parts * p.tile_rows + row) * p.tile_columns + column;
  for (int k = 0; k < 8; ++k) {
    if (first + k >= p.rows || c > first + k) continue;
    float sum = 0;
    for (int part = 0; part < p.parts; ++part)
      sum += partial[(std::int64_t{part} * p.tile_rows + k) * p.tile_columns];
    store_symmetric(p, batch * p.y_batch + (first + k) * p.y_stride + c,
                    batch * p.y_batch + c * p.y_stride + first + k, sum);
  }
}

/// Queues the products where this device allows; false if not. May use the policy's scratch memory.
inline bool launch_symmetric_product_sm90(const exec::cuda& p, std::string_view where, symmetric_product m) {
  if (!has_sm90a_code(p, symmetric_product_kernel<symmetric_product>)) return false;
  constexpr std::int64_t tile_bytes = sizeof(float) * m.tile_rows * m.tile_columns;
  const std::int64_t units = std::int64_t{m.tiles()} * m.batch, blocks = p.device().multiprocessors,
                     steps = ceil_div(m.inner, 64);
  m.part_steps = static_cast<int>(steps);
  // Steps until the last block is done, if every tile has so many parts. A part costs about 8 more steps:
  // its sums go to memory and come back.
  std::int64_t best = ceil_div(units, blocks) * steps;
  for (int parts = 2; parts <= 16; ++parts) {
    const std::int64_t each = ceil_div(steps, parts), time = ceil_div(units * parts, blocks) * (each + 8);
    if (time < best && ceil_div(steps, each) == parts &&
        units * parts * tile_bytes <= static_cast<std::int64_t>(p.scratch_bytes()))
      best = time, m.parts = parts, m.part_steps = static_cast<int>(each);
  }
  m.partial = reinterpret_cast<float*>(p.scratch());
  p.launch(where, symmetric_product_kernel<symmetric_product>,
           dim3(static_cast<unsigned>(std::min(units * m.parts, blocks))), 384,
           sizeof(symmetric_product_memory) + 1024, m);
  if (m.parts > 1)
    p.launch(where, symmetric_parts_kernel<symmetric_product>,
             dim3(static_cast<unsigned>(units), symmetric_product::tile_rows / 8), 256, 0, m);
  return true;
}

}  // namespace dsv4::detail
