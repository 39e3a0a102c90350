// SPDX-License-Identifier: Apache-2.0
/// Tiles of FP8 and MXFP4 matrices on their way to Hopper's FP8 matrix units.
///
/// MXFP4 becomes E4M3 on its way: what a scale differs by from a power of two above all of the tile's goes
/// into the codes' exponents. E4M3 has room for 15 of these; blocks whose scales are further below are left
/// to another pass over the same channels, so that the weights multiplied are the exact ones for all scales.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemm_tiles_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>

namespace dsv4::detail {

inline constexpr int gemm_fp8_depth = 128;

/// Tiles and threads for weights of format F. Copies take one warpgroup and can serve wide tiles. Decoding
/// takes two, each for every other block, which leaves registers for half of the sums.
template <class F>
struct gemm_fp8_shape {
  static constexpr int columns = F::packed ? 128 : 256, halves = columns / 128;
  static constexpr int producers = F::packed ? 2 : 1;        ///< warpgroups
  static constexpr int ring = 3, stages = producers * ring;  ///< each producer has a ring
  static constexpr int producer_registers = F::packed ? 104 : 72, consumer_registers = F::packed ? 152 : 216;
  static constexpr int threads = 256 + 128 * producers;
  /// Columns of a product. Half of them are scaled while the next half is under way; where producers are the
  /// limit, fewer and larger products leave them more of the instructions.
  static constexpr int part = F::packed ? 128 : 64;
  static constexpr int y_columns = F::packed ? 64 : 256;  ///< of y, which are on their way out at a time
};

/// Bytes from row to row of y in shared memory: rows of a fragment lie in different banks.
template <int Columns>
inline constexpr int y_pitch = Columns * 2 + 16;

template <class F>
struct alignas(1024) gemm_fp8_memory {
  using shape = gemm_fp8_shape<F>;
  std::uint8_t x[shape::stages][gemm_rows_sm90 * gemm_fp8_depth];
  std::uint8_t weight[shape::stages][shape::columns * gemm_fp8_depth];
  std::uint8_t y[8][16 * y_pitch<shape::y_columns>];  ///< each warp's 16 rows
  float x_scale[shape::stages][gemm_rows_sm90];
  float weight_scale[shape::stages][2];  ///< of either half of the columns
  int last[shape::stages];               ///< whether it is the last pass over these channels
  phase_barrier full[shape::stages], empty[shape::stages];
  int2 scale_range[2][2][4];  ///< by producer and warp: highest and lowest
  uint2 e2m1_as_e4m3[17];     ///< see fp8_tiles<mxfp4>
  std::uint32_t signs;        ///< likewise
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
  __device__ void next(int blocks) {
#pragma unroll
    for (int i = 0; i < count; ++i) from[i] += blocks * gemm_fp8_depth;
  }
};

/// Brings tiles of a weight matrix to shared memory as E4M3, from row `row` on, by the 128 threads of a
/// producer: bring() makes one pass over the 128 channels of `block`, and tells whether it was the last;
/// next() goes on to the producer's next block.
template <class F>
struct fp8_tiles;

template <>
struct fp8_tiles<fp8_weight> {
  using matrix = block_scaled_matrix<const fp8_weight, space::device>;
  using memory = gemm_fp8_memory<fp8_weight>;
  const matrix& m;
  row_copies<256> copies;
  int row, thread, block, pass = 0;
  int before;             ///< rows of the first row of blocks that lie before the tile
  e8m0 scale, following;  ///< of half `thread % 2`; of this block and the next

  static __device__ void prepare(memory&, int) {}
  static __device__ void announce(const matrix&, int, int, int) {}
  __device__ fp8_tiles(const matrix& weight, int row_, int block_, int, int thread_, memory&)
      : m(weight),
        copies(weight.row(row_) + block_ * gemm_fp8_depth, weight.extent[0] - row_, weight.row_stride,
               thread_),
        row(row_),
        thread(thread_),
        block(block_),
        before(static_cast<int>((weight.skipped_rows + row_) % fp8_weight::block_rows)),
        scale(scale_of(thread_ % 2, 0)) {}

  __device__ bool bring(int stage, memory& to) {
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
  __device__ void next(memory&) { ++block, pass = 0, scale = following, copies.next(1); }

 private:
  /// The scale of half `half` in this pass, `further` blocks on; any where there is nothing.
  __device__ e8m0 scale_of(int half, int further) const {
    const std::int64_t r = row + 128 * half + (pass ? 128 - before : 0);
    return r < m.extent[0] && (block + further) * gemm_fp8_depth < m.extent[1]
               ? m.row_scales(r)[block + further]
               : e8m0();
  }
};

/// 2^e, e >= -149.
__device__ __forceinline__ float power_of_two(int e) {
  return __uint_as_float(e >= -126 ? static_cast<unsigned>(e + 127) << 23 : 1u << (149 + e));
}

/// Thread t has the 32 codes t % 4 of rows t / 4, + 32, ..., those of the producer's next block in registers;
/// the L2 cache is asked for them some blocks earlier. Codes get the other sign, which saves an instruction,
/// and scales have it too.
template <>
struct fp8_tiles<mxfp4> {
  using matrix = block_scaled_matrix<const mxfp4, space::device>;
  using memory = gemm_fp8_memory<mxfp4>;
  /// E2M1's largest, 6, times 2^6 is E4M3's 384; times 2^-8 its smallest halves are E4M3's 2^-9.
  static constexpr int above = 6, range = above + 8, nothing = range + 1, nan = nothing + 1;
  static constexpr int count = 4, others = gemm_fp8_shape<mxfp4>::producers;  ///< from own block to own block
  const std::uint8_t *codes_at, *scales_at, *line_at;  ///< where the tile's current columns begin
  std::uint32_t code_row[count], scale_row[count];     ///< bytes to this thread's rows; less than 2^32
  std::uint32_t signs;
  int columns, producer, thread, block, pass = 0, parity = 0;
  int top = -1;       ///< what the tile is scaled by, as bits of a scale; from block to block while it does
  bool over = false;  ///< whether no scale is further below than `range`
  uint4 codes[count];
  int scales[count], following[count];  ///< bits; NaN where there is nothing

  /// Fills the table: the magnitudes 0, 1/2, 1, 3/2, 2, 3, 4, 6 times 2^(i + above - range); zeros; NaN.
  static __device__ void prepare(memory& to, int thread) {
    if (thread > nan) return;
    to.signs = 0x40404040u;
    std::uint32_t half[2] = {};
    for (int i = 0; i < 8; ++i) {
      const float magnitude = static_cast<float>(e2m1::from_bits(static_cast<std::uint8_t>(i)));
      const std::uint32_t bits = thread == nothing ? 0x00u
                                 : thread == nan   ? 0x7Fu
                                                   : e4m3(ldexpf(magnitude, thread + above - range)).bits;
      half[i / 4] |= bits << (8 * (i % 4));
    }
    to.e2m1_as_e4m3[thread] = make_uint2(half[0], half[1]);
  }

  /// Has the L2 cache bring what a tile begins with.
  static __device__ void announce(const matrix& m, int row, int producer, int thread) {
    const std::int64_t r = min(std::int64_t{row + thread}, m.extent[0] - 1);
    if (2 * producer * gemm_fp8_depth < m.extent[1]) bring_to_l2(m.row(r) + producer * gemm_fp8_depth);
    if (producer == 0) bring_to_l2(m.row_scales(r));
  }

  __device__ fp8_tiles(const matrix& m, int row, int block_, int producer_, int thread_, memory& shared)
      : columns(static_cast<int>(m.extent[1])), producer(producer_), thread(thread_), block(block_) {
    const auto clamped = [&](int r) { return min(std::int64_t{r}, m.extent[0] - 1 - row); };
    codes_at = m.row(row) + block * (gemm_fp8_depth / 2);
    scales_at = reinterpret_cast<const std::uint8_t*>(m.row_scales(row)) + 4 * block;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const std::int64_t r = clamped(thread / 4 + 32 * i);
      code_row[i] = static_cast<std::uint32_t>(r * m.row_stride) + 16 * (thread % 4);
      scale_row[i] = static_cast<std::uint32_t>(r * m.scale_row_stride) + thread % 4;
    }
    line_at = m.row(row + clamped(thread));
    // From memory: a constant the compiler would bring to a register for every use.
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(signs) : "r"(shared_address(&shared.signs)));
    load_scales(0);
    load_codes(0);
    go_on(shared);
  }

  __device__ bool bring(int stage, memory& to) {
    const std::uint32_t tile = shared_address(to.weight[stage]) + tile_offset(thread / 4, 2 * (thread % 4)),
                        tables = shared_address(to.e2m1_as_e4m3);
    const int further = pass == 0 ? others : 0;
    if (pass == 0) {
      if (block / 2 % 2 == producer) ask(block / 2 + 2);
      load_scales(others);
    }
    uint2 table[count];
#pragma unroll
    for (int i = 0; i < count; ++i) table[i] = table_of(i, tables);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      store(tile + 32 * gemm_fp8_depth * i, codes[i], table[i]);
      load(i, further);
    }
    fence_async_shared();
    if (thread == 0) to.weight_scale[stage][0] = -power_of_two(top - 127 - above);
    if (over) return true;
    if (pass++ == 0) load_codes(0);  // not the following block's
    const int2 left = find_range(top - range, to);
    top = left.x, over = left.y >= top - range;
    return false;
  }
  __device__ void next(memory& shared) {
    block += others;
    codes_at += others * gemm_fp8_depth / 2, scales_at += others * (gemm_fp8_depth / mxfp4::block_columns);
    if (pass > 0) load_codes(0);
    pass = 0;
    go_on(shared);
  }

 private:
  /// Whether this thread's columns of the block after `further` others are there.
  __device__ bool inside(int further) const {
    return (block + further) * gemm_fp8_depth + 32 * (thread % 4) < columns;
  }
  /// Brings this thread's row of two blocks to the L2 cache.
  __device__ void ask(int pair) const {
    if (2 * pair * gemm_fp8_depth < columns) bring_to_l2(line_at + pair * gemm_fp8_depth);
  }
  /// Row i; where there is nothing, what is at the row's start, which then is multiplied by nothing.
  __device__ void load(int i, int further) {
    const std::uint8_t* const from = inside(further)
                                         ? codes_at + further * (gemm_fp8_depth / 2)
                                         : codes_at - block * (gemm_fp8_depth / 2) - 16 * (thread % 4);
    uint4& to = codes[i];
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                 : "l"(from + code_row[i]));
  }
  __device__ void load_codes(int further) {
#pragma unroll
    for (int i = 0; i < count; ++i) load(i, further);
  }
  __device__ void load_scales(int further) {
    const std::uint8_t* const from =
        inside(further) ? scales_at + further * (gemm_fp8_depth / mxfp4::block_columns)
                        : scales_at - block * (gemm_fp8_depth / mxfp4::block_columns) - thread % 4;
#pragma unroll
    for (int i = 0; i < count; ++i)
      asm volatile("ld.global.nc.L2::128B.u8 %0, [%1];" : "=r"(following[i]) : "l"(from + scale_row[i]));
  }
  __device__ bool covered(int scale) const {
    return scale == 0xFF || static_cast<unsigned>(scale - top + range) <= unsigned{range};
  }
  /// Keeps `top` where that does, else finds another, with some room for the blocks to come.
  __device__ void go_on(memory& shared) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < count; ++i)
      scales[i] = inside(0) ? following[i] : 0xFF, all = all && covered(scales[i]);
    over = all_threads(1 + producer, 128, all);
    if (over) return;
    const int2 found = find_range(0xFF, shared);
    top = found.x + max(0, min(2, range - (found.x - found.y)));
    over = found.y >= top - range;
  }
  /// The highest scale below `limit` and the lowest of all; -1 and 256 where there are none.
  __device__ int2 find_range(int limit, memory& shared) {
    int2 found = make_int2(-1, 256);
#pragma unroll
    for (int i = 0; i < count; ++i)
      found = make_int2(max(found.x, scales[i] < limit ? scales[i] : -1), min(found.y, scales[i]));
    found = make_int2(__reduce_max_sync(0xFFFFFFFFu, found.x), __reduce_min_sync(0xFFFFFFFFu, found.y));
    parity ^= 1;  // who still reads the other has not come to the barrier
    int2(&ranges)[4] = shared.scale_range[producer][parity];
    if (thread % 32 == 0) ranges[thread / 32] = found;
    sync_threads(1 + producer, 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) found = make_int2(max(found.x, ranges[i].x), min(found.y, ranges[i].y));
    return found;
  }
  __device__ uint2 table_of(int i, std::uint32_t tables) const {
    const auto at = static_cast<unsigned>(scales[i] - top + range);
    const unsigned entry = scales[i] == (inside(0) ? 0xFF : -1) ? unsigned{nan} : min(at, unsigned{nothing});
    uint2 table;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(table.x), "=r"(table.y) : "r"(tables + 8 * entry));
    return table;
  }
  static __device__ std::uint32_t choose(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
    std::uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
    return r;
  }
  /// Four codes: magnitudes from the table, and 0x80 where the sign bit, which makes prmt repeat the chosen
  /// byte's highest bit instead, is not set.
  __device__ std::uint32_t decode(std::uint32_t four, const uint2& table) const {
    return choose(table.x, table.y, four & 0x7777u) + 2 * choose(signs, signs, four);
  }
  __device__ void store(std::uint32_t at, const uint4& c, const uint2& table) const {
    const std::uint32_t word[] = {c.x, c.y, c.z, c.w};
#pragma unroll
    for (int j = 0; j < 2; ++j)
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at ^ 16 * j),
                   "r"(decode(word[2 * j], table)), "r"(decode(word[2 * j] >> 16, table)),
                   "r"(decode(word[2 * j + 1], table)), "r"(decode(word[2 * j + 1] >> 16, table))
                   : "memory");
  }
};

}  // namespace dsv4::detail
