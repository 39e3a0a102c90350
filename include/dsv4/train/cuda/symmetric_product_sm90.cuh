// SPDX-License-Identifier: Apache-2.0
/// Products that are symmetric, on Hopper's matrix units: the tiles of one triangle are computed, and written
/// twice.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tensor_copy_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace dsv4::detail {

/// y[s, b] = scale left[b] right[s, b]^T + c_scale c[b] + shift I for square y; c null: none. Only the lower
/// triangle of what this would be is computed. Set strides count with more than one set; c is laid out as y.
template <class E>
struct symmetric_product {
  std::int64_t rows, inner, batch;
  const E* left;
  const E* right;
  std::int64_t left_stride, left_batch, right_stride, right_batch, right_set;  ///< multiples of 8
  E* y;
  std::int64_t y_stride, y_batch, y_set;  ///< multiples of 8
  const E* c = nullptr;
  double scale = 1, c_scale = 0, shift = 0;
  std::int64_t sets = 1;
};

inline constexpr int symmetric_tile_rows = 128;

/// The same, as a kernel takes it. Two blocks work on tiles one below the other, `Columns` wide; each brings
/// half of the right operand, for both.
template <class E, int Columns>
struct symmetric_tiles {
  static constexpr int columns = Columns, stages = Columns <= 160 ? 5 : 4;
  static constexpr int pieces = Columns / 32;  ///< a tile is written 32 columns at a time

  CUtensorMap left, right, direct, mirrored;  ///< the latter two are y, in boxes of 64 x 32 and 32 x 64
  E* y;
  const E* c;
  std::int64_t y_stride, y_batch, y_set;
  float scale, c_scale, shift;
  int rows, inner, batch, sets;
  int count;  ///< tiles()
  /// Each tile's inner extent is cut into so many parts of `part_steps` steps of 64; with more than one,
  /// their sums go to `partial`.
  int parts, part_steps;
  float* partial;

  __host__ __device__ int row_tiles() const { return (rows + 255) / 256; }
  /// Tiles in the rows of pair i that reach the lower triangle.
  __host__ __device__ int column_tiles(int i) const {
    const int end = 256 * (i + 1);
    return ((end < rows ? end : rows) + Columns - 1) / Columns;
  }
  int tiles() const {
    int count = 0;
    for (int i = 0; i < row_tiles(); ++i) count += column_tiles(i);
    return count;
  }
  __host__ __device__ int units() const { return count * batch * sets * parts; }

  struct place {
    int row, column, batch, set, part;
  };
  /// Where a pair of blocks works.
  __device__ place locate(int unit) const {
    place at;
    at.part = unit % parts;
    const int whole = unit / parts, matrix = whole / count;
    int tile = whole % count, i = 0;
    for (; tile >= column_tiles(i); ++i) tile -= column_tiles(i);
    at.row = 256 * i, at.column = Columns * tile;
    at.batch = matrix % batch, at.set = matrix / batch;
    return at;
  }
  __device__ std::int64_t offset(const place& at) const { return at.set * y_set + at.batch * y_batch; }
  __device__ float finished(float sum, std::int64_t of_c, bool diagonal) const {
    float value = scale * sum;
    if (c) value += c_scale * widened<float>(c[of_c]);
    return diagonal ? value + shift : value;
  }
};

template <class Tiles>
struct alignas(1024) symmetric_memory {
  std::uint8_t left[Tiles::stages][symmetric_tile_rows * 128];
  std::uint8_t right[Tiles::stages][Tiles::columns * 128];
  /// What is on its way out, by warpgroup: two pieces, each as it is (64 rows) and transposed (32 rows).
  std::uint8_t direct[2][2][64 * 64], mirrored[2][2][32 * 128];
  phase_barrier full[Tiles::stages], empty[Tiles::stages];
};

/// own = the sixteen sums of piece `piece`, which is at most `Last`.
template <int Last, int N>
__device__ __forceinline__ void take_piece(const float (&sums)[N], int piece, float (&own)[16]) {
  if constexpr (Last > 0)
    if (piece < Last) {
      take_piece<Last - 1>(sums, piece, own);
      return;
    }
#pragma unroll
  for (int i = 0; i < 16; ++i) own[i] = sums[16 * Last + i];
}

/// As many pairs of blocks as fit, each with every so-many-th part of a tile. Two warpgroups multiply, 64
/// rows each; one thread of the third brings tiles.
template <class E, int Columns>
__global__ void DSV4_PAIRS __launch_bounds__(384, 1)
    symmetric_product_kernel(const __grid_constant__ symmetric_tiles<E, Columns> p) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  using tiles = symmetric_tiles<E, Columns>;
  constexpr int stages = tiles::stages, half = Columns / 2;
  extern __shared__ __align__(1024) unsigned char raw[];
  // By the address alone, which is the same in both blocks of a pair.
  auto& m = *reinterpret_cast<symmetric_memory<tiles>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32,
            rank = rank_in_pair();
  if (thread == 0) {
    for (int s = 0; s < stages; ++s) {
      m.full[s].init(1);
      m.empty[s].init(16);  // the multiplying warps of both blocks
    }
    fence_barrier_init();
  }
  if (thread == 256)
    for (const CUtensorMap* map : {&p.left, &p.right, &p.direct, &p.mirrored}) prefetch_map(*map);
  sync_pair();
  const int all_steps = (p.inner + 63) / 64, units = p.units(), pairs = static_cast<int>(gridDim.x / 2),
            pair = static_cast<int>(blockIdx.x / 2);

  int step = 0;  // counts through all units
  if (group == 2) {
    give_registers<40>();
    if (thread == 256)
      for (int unit = pair; unit < units; unit += pairs) {
        const auto at = p.locate(unit);
        const int end = min(all_steps, (at.part + 1) * p.part_steps);
        for (int i = at.part * p.part_steps; i < end; ++i, ++step) {
          const int stage = step % stages, round = step / stages;
          if (round > 0) m.empty[stage].wait((round - 1) & 1);
          arrive_expecting(m.full[stage], (symmetric_tile_rows + Columns) * 128);
          copy_box(shared_address(m.left[stage]), p.left,
                   {64 * i, at.row + symmetric_tile_rows * rank, at.batch, 0}, m.full[stage]);
          copy_box_to_pair(shared_address(m.right[stage]) + rank * half * 128, p.right,
                           {64 * i, at.column + half * rank, at.batch, at.set}, m.full[stage]);
        }
      }
  } else {
    take_registers<232>();
    const int warp = thread % 128 / 32;
    const std::uint32_t direct = shared_address(m.direct[group]),
                        mirrored = shared_address(m.mirrored[group]);
    int stored = 0;  // pieces, of all units
    for (int unit = pair; unit < units; unit += pairs) {
      const auto at = p.locate(unit);
      const int begin = at.part * p.part_steps, end = min(all_steps, begin + p.part_steps);
      const int first_row = at.row + symmetric_tile_rows * rank + 64 * group;
      const int own_row = 16 * warp + lane / 4, own_column = 2 * (lane % 4);  // + 8 h, + 8 j
      const std::int64_t matrix = p.offset(at);
      std::uint32_t of_c[2][4] = {};  // of the next piece to be written
      const auto load_c = [&](int first_column) {
        if (p.c == nullptr || p.parts > 1) return;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          // Rows and columns beyond the matrix give what is never written; c's memory has whole rows of
          // y_stride elements.
          const int row = min(first_row + own_row + 8 * h, p.rows - 1);
          const E* const from = p.c + matrix + row * p.y_stride + first_column + own_column;
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (first_column + own_column + 8 * j < p.y_stride)
              of_c[h][j] = *reinterpret_cast<const std::uint32_t*>(from + 8 * j);
        }
      };
      load_c(at.column);
      float sums[Columns / 2];
      const auto release = [&](int of) {
        if (lane < 2) arrive_in_pair(m.empty[of % stages], lane);
      };
      for (int i = begin; i < end; ++i, ++step) {
        const int stage = step % stages;
        m.full[stage].wait(step / stages & 1);
        const std::uint32_t left = shared_address(m.left[stage]) + 64 * 128 * group,
                            right = shared_address(m.right[stage]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wgmma<Columns, 0, 0, E>::run(sums, tile_descriptor(left + 32 * k, 1024, 0),
                                       tile_descriptor(right + 32 * k, 1024, 0), i > begin || k > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the step before has been read once this one alone is under way
        if (i > begin) release(step - 1);
      }
      wgmma_wait<0>();
      keep(sums);
      release(step - 1);

      if (p.parts > 1) {
        float* to = p.partial +
                    ((std::int64_t{unit} * 2 + rank) * symmetric_tile_rows + 64 * group + own_row) * Columns +
                    own_column;
#pragma unroll
        for (int h = 0; h < 2; ++h, to += 8 * Columns)
#pragma unroll
          for (int j = 0; j < Columns / 8; ++j)
            *reinterpret_cast<pack<float, 2>*>(to + 8 * j) = {{sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]}};
        continue;
      }
      // Not unrolled: so much code would have to come from memory at every launch.
#pragma unroll 1
      for (int piece = 0; piece < tiles::pieces; ++piece) {
        const int first_column = at.column + 32 * piece;
        if (first_row < p.rows && first_column < first_row + 64) {
          const int slot = stored++ % 2;
          const bool on_diagonal = first_column + 32 > first_row;
          float own[16];
          take_piece<tiles::pieces - 1>(sums, piece, own);
          std::uint32_t words[2][4];
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              float2 value = {p.scale * own[4 * j + 2 * h], p.scale * own[4 * j + 2 * h + 1]};
              if (p.c) {
                const float2 c = unpacked_pair<E>(of_c[h][j]);
                value.x += p.c_scale * c.x, value.y += p.c_scale * c.y;
              }
              if (on_diagonal) {
                const int distance = first_row + own_row + 8 * h - (first_column + own_column + 8 * j);
                if (distance == 0) value.x += p.shift;
                if (distance == 1) value.y += p.shift;
              }
              words[h][j] = packed_pair<E>(value.x, value.y);
            }
          load_c(first_column + 32);
          if (thread % 128 == 0)
            wait_for_stores<1>();  // those before the latest, which was in the other slot
          sync_threads(1 + group, 128);
          const std::uint32_t as_is = direct + slot * 4096, across = mirrored + slot * 4096;
          const int block = lane / 8, r = lane % 8;
#pragma unroll
          for (int j = 0; j < 4; j += 2) {
            const std::uint32_t v[4] = {words[0][j], words[1][j], words[0][j + 1], words[1][j + 1]};
            store_blocks<false>(as_is + narrow_tile_offset(16 * warp + 8 * (block % 2) + r, j + block / 2),
                                v);
            store_blocks<true>(across + tile_offset(8 * (j + block / 2) + r, 2 * warp + block % 2), v);
          }
          if (!on_diagonal) fence_async_shared();
          sync_threads(1 + group, 128);
          if (on_diagonal) {
            // Above the diagonal stands what was computed below it, whatever order sums were made in.
            const E* const piece_rows = reinterpret_cast<const E*>(m.direct[group][slot]);
            for (int k = thread % 128; k < 64 * 32; k += 128) {
              const int i = k / 32, j = k % 32, row = first_row + i, column = first_column + j;
              if (row >= p.rows || column > row) continue;
              const E value = piece_rows[narrow_tile_offset(i, j / 8) / 2 + static_cast<unsigned>(j % 8)];
              p.y[matrix + row * p.y_stride + column] = value;
              p.y[matrix + column * p.y_stride + row] = value;
            }
          }
          if (thread % 128 == 0) {
            if (!on_diagonal) {
              store_box(p.direct, {first_column, first_row, at.batch, at.set}, as_is);
              store_box(p.mirrored, {first_row, first_column, at.batch, at.set}, across);
            }
            end_store_group();
          }
        }
      }
    }
    if (thread % 128 == 0) wait_for_stores<0>();
  }
  sync_pair();  // nobody's memory goes while the other block may write to it
#endif
}

/// Adds up the parts, in order, and finishes: blocks of 32 x 32 elements, (pair's tile, of it), 32 x 8
/// threads.
template <class E, int Columns>
__global__ void __launch_bounds__(256)
    symmetric_parts_kernel(const __grid_constant__ symmetric_tiles<E, Columns> p) {
  wait_for_previous_kernels();
  __shared__ E tile[32][34];
  const auto at = p.locate(static_cast<int>(blockIdx.x) * p.parts);
  const int across = static_cast<int>(threadIdx.x), down = static_cast<int>(threadIdx.y);
  const int block_row = static_cast<int>(blockIdx.y) / (Columns / 32) * 32,
            block_column = static_cast<int>(blockIdx.y) % (Columns / 32) * 32;
  const int row = at.row + block_row, column = at.column + block_column;
  if (row >= p.rows || column > row + 31) return;
  const std::int64_t matrix = p.offset(at);
  constexpr std::int64_t part_size = std::int64_t{2} * symmetric_tile_rows * Columns;
#pragma unroll
  for (int k = down; k < 32; k += 8) {
    const float* const from =
        p.partial + blockIdx.x * part_size * p.parts + (block_row + k) * Columns + block_column + across;
    float sum = 0;
#pragma unroll 8
    for (int part = 0; part < p.parts; ++part) sum += from[part * part_size];
    if (row + k < p.rows && column + across <= row + k) {
      const std::int64_t to = matrix + (row + k) * p.y_stride + column + across;
      p.y[to] = tile[k][across] = narrowed<E>(p.finished(sum, to, row + k == column + across));
    }
  }
  __syncthreads();
  for (int k = down; k < 32; k += 8)
    if (row + across < p.rows && column + k <= row + across)
      p.y[matrix + (column + k) * p.y_stride + row + across] = tile[across][k];
}

template <class E, int Columns>
void launch_symmetric_tiles(const exec::cuda& p, std::string_view where, const symmetric_product<E>& m,
                            int parts) {
  using tiles = symmetric_tiles<E, Columns>;
  const auto square = [&](const E* data, std::int64_t columns, std::int64_t stride, std::int64_t batch_stride,
                          std::int64_t sets, std::int64_t set_stride) {
    return copied_tensor{data, columns, m.rows,       m.batch,
                         sets, stride,  batch_stride, sets > 1 ? set_stride : batch_stride};
  };
  const copied_tensor left = square(m.left, m.inner, m.left_stride, m.left_batch, 1, 0),
                      right = square(m.right, m.inner, m.right_stride, m.right_batch, m.sets, m.right_set),
                      y = square(m.y, m.rows, m.y_stride, m.y_batch, m.sets, m.y_set);
  tiles t{};
  t.left = tensor_map<E>(where, left, 64, symmetric_tile_rows);
  t.right = tensor_map<E>(where, right, 64, Columns / 2);
  t.direct = tensor_map<E>(where, y, 32, 64);
  t.mirrored = tensor_map<E>(where, y, 64, 32);
  t.y = m.y, t.c = m.c;
  t.y_stride = m.y_stride, t.y_batch = m.y_batch, t.y_set = m.y_set;
  t.scale = static_cast<float>(m.scale), t.c_scale = static_cast<float>(m.c_scale);
  t.shift = static_cast<float>(m.shift);
  t.rows = static_cast<int>(m.rows), t.inner = static_cast<int>(m.inner);
  t.batch = static_cast<int>(m.batch), t.sets = static_cast<int>(m.sets);
  t.count = t.tiles(), t.parts = parts,
  t.part_steps = static_cast<int>(ceil_div(ceil_div(m.inner, 64), parts));
  t.partial = reinterpret_cast<float*>(p.scratch());
  const std::int64_t pairs = std::min<std::int64_t>(t.units(), p.device().multiprocessors / 2);
  p.launch(where, symmetric_product_kernel<E, Columns>, dim3(static_cast<unsigned>(2 * pairs)), 384,
           sizeof(symmetric_memory<tiles>) + 1024, t);
  if (parts > 1)
    p.launch(where, symmetric_parts_kernel<E, Columns>,
             dim3(static_cast<unsigned>(t.units() / parts), 8 * tiles::pieces), dim3(32, 8), 0, t);
}

/// Queues the products where this device allows; false if not. May use the policy's scratch memory.
template <class E>
bool launch_symmetric_product_sm90(const exec::cuda& p, std::string_view where,
                                   const symmetric_product<E>& m) {
  if (!has_sm90a_code(p, symmetric_product_kernel<E, 256>)) return false;
  // Cycles until the last pair is done, by the width of tiles and the parts each is cut into. A step takes
  // what its products take, or the reads and writes of shared memory; a tile's end grows with its width, and
  // sums that go to memory and come back take longer.
  const std::int64_t pairs = p.device().multiprocessors / 2, steps = ceil_div(m.inner, 64);
  struct {
    std::int64_t time;
    int columns, parts;
  } best{INT64_MAX, 0, 0};
  const auto consider = [&]<int Columns>() {
    symmetric_tiles<E, Columns> t{};
    t.rows = static_cast<int>(m.rows), t.batch = static_cast<int>(m.batch);
    t.sets = static_cast<int>(m.sets), t.parts = 1, t.count = t.tiles();
    constexpr std::int64_t step = std::max(4 * Columns, 256 + 3 * Columns);
    const std::int64_t units = t.units();
    for (int parts = 1; parts <= 16; ++parts) {
      const std::int64_t each = ceil_div(steps, parts), bytes = units * parts * 256 * Columns * 4;
      const std::int64_t end = 32 * Columns + (parts > 1 ? 4096 : 0),
                         time = ceil_div(units * parts, pairs) * (each * step + end) + (parts > 1 ? 8192 : 0);
      if (time < best.time && ceil_div(steps, each) == parts &&
          (parts == 1 || bytes <= static_cast<std::int64_t>(p.scratch_bytes())))
        best = {time, Columns, parts};
    }
  };
  consider.template operator()<256>();
  consider.template operator()<192>();
  consider.template operator()<160>();
  consider.template operator()<96>();
  if (best.columns == 256)
    launch_symmetric_tiles<E, 256>(p, where, m, best.parts);
  else if (best.columns == 192)
    launch_symmetric_tiles<E, 192>(p, where, m, best.parts);
  else if (best.columns == 160)
    launch_symmetric_tiles<E, 160>(p, where, m, best.parts);
  else
    launch_symmetric_tiles<E, 96>(p, where, m, best.parts);
  return true;
}

}  // namespace dsv4::detail
