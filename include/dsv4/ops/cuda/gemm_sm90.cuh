// SPDX-License-Identifier: Apache-2.0
/// Matrix products on Hopper's matrix units: bf16, or what is decoded to bf16 on the way; many at once.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace dsv4::detail {

inline constexpr int gemm_rows_sm90 = 128, gemm_columns_sm90 = 256, gemm_stages_sm90 = 4;
inline constexpr int most_gemm_groups = 1024;

struct alignas(1024) gemm_memory_sm90 {
  std::uint8_t x[gemm_stages_sm90][gemm_rows_sm90 * 128];
  std::uint8_t weight[gemm_stages_sm90][gemm_columns_sm90 * 128];
  phase_barrier full[gemm_stages_sm90], empty[gemm_stages_sm90];
  int first_tile[most_gemm_groups + 1];  ///< of the rows' tiles of each group
};

/// Brings tiles of `Rows` rows and 64 columns of a matrix to shared memory, by 128 threads: the next one each
/// time next() is called, `last` telling that none will follow.
template <class M, int Rows>
struct tile_loader;

/// bf16: copied past the registers.
template <class E, int Rows>
requires std::same_as<std::remove_const_t<E>, bf16>
struct tile_loader<view<E, 2, space::device>, Rows> {
  const bf16* from;
  std::int64_t stride;
  int rows, columns, thread;

  __device__ tile_loader(const view<E, 2, space::device>& m, std::int64_t row, std::int64_t count,
                         int thread_)
      : from(m.data + row * m.stride[0]),
        stride(m.stride[0]),
        rows(static_cast<int>(min(count, std::int64_t{Rows}))),
        columns(static_cast<int>(m.extent[1])),
        thread(thread_) {}
  __device__ void next(int column, bool, std::uint32_t tile) {
    const int c = thread % 8;
    const bool inside = column + 8 * c < columns;
#pragma unroll
    for (int i = 0; i < Rows / 16; ++i) {
      const int r = thread / 8 + 16 * i;
      const bool valid = inside && r < rows;
      copy_16(tile + tile_offset(r, c), valid ? from + r * stride + column + 8 * c : from, valid);
    }
  }
};

/// Block-scaled: decoded in registers, four pieces of 16 bytes at a time, while the next four are on their
/// way.
template <class F, int Rows>
struct tile_loader<block_scaled_matrix<const F, space::device>, Rows> {
  static constexpr int codes = codes_per_16<F>, per_row = 64 / codes, pieces = Rows * per_row / 128;
  static constexpr int at_once = 4, batches = pieces / at_once;
  static_assert(pieces % at_once == 0);
  struct batch {
    uint4 codes[at_once];
    e8m0 scale[at_once];
  };
  block_scaled_matrix<const F, space::device> m;
  std::int64_t row;
  int rows, thread;
  batch held;

  __device__ tile_loader(const block_scaled_matrix<const F, space::device>& matrix, std::int64_t row_,
                         std::int64_t count, int thread_)
      : m(matrix), row(row_), rows(static_cast<int>(min(count, std::int64_t{Rows}))), thread(thread_) {
    held = fetch(0, 0);
  }
  __device__ void next(int column, bool last, std::uint32_t tile) {
#pragma unroll
    for (int b = 0; b < batches; ++b) {
      batch following = held;
      if (b + 1 < batches)
        following = fetch(b + 1, column);
      else if (!last)
        following = fetch(0, column + 64);
      store(b, tile);
      held = following;
    }
  }

 private:
  __device__ int row_of(int b, int i) const { return thread / per_row + 128 / per_row * (b * at_once + i); }
  __device__ batch fetch(int b, int column) const {
    const int c = column + thread % per_row * codes;
    batch got;
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int r = row_of(b, i);
      got.codes[i] = make_uint4(0, 0, 0, 0);
      got.scale[i] = e8m0();
      if (r < rows && c < m.extent[1]) {
        got.codes[i] = __ldg(reinterpret_cast<const uint4*>(m.row(row + r) + F::row_bytes(c)));
        got.scale[i] = m.row_scales(row + r)[c / F::block_columns];
      }
    }
    return got;
  }
  __device__ void store(int b, std::uint32_t tile) const {
    const int c = thread % per_row * codes / 8;
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      std::uint32_t out[codes / 2];
      decode_16<F>(held.codes[i], held.scale[i], out);
#pragma unroll
      for (int j = 0; j < codes / 8; ++j)
        asm volatile(
            "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + tile_offset(row_of(b, i), c + j)),
            "r"(out[4 * j]), "r"(out[4 * j + 1]), "r"(out[4 * j + 2]), "r"(out[4 * j + 3])
            : "memory");
    }
  }
};

/// As many blocks as multiprocessors, each with every gridDim.x-th tile of 128 x 256. Two warpgroups
/// multiply, 64 rows each; the third brings tiles.
template <class T, class XView, class WView>
__global__ void __launch_bounds__(384, 1) gemm_sm90_kernel(gemm_problem<T, XView, WView> p) {
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  gemm_memory_sm90& m =
      *reinterpret_cast<gemm_memory_sm90*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < gemm_stages_sm90; ++s) {
      m.full[s].init(256);  // copies and stores of every producing thread
      m.empty[s].init(256);
    }
    fence_barrier_init();
  }
  // How many tiles of rows lie before each group's: sums by the first warp.
  if (thread < 32) {
    int before = 0;
    for (int base = 0; base < p.groups; base += 32) {
      const int g = base + lane;
      const std::int64_t rows = g >= p.groups ? 0
                                : p.offsets   ? p.offsets[g + 1] - p.offsets[g]
                                              : p.y.extent[0];
      const int own = static_cast<int>((rows + gemm_rows_sm90 - 1) / gemm_rows_sm90);
      int through = own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, through, step);
        if (lane >= step) through += other;
      }
      if (g < p.groups) m.first_tile[g + 1] = before + through;
      before += __shfl_sync(0xffffffffu, through, 31);
    }
    if (lane == 0) m.first_tile[0] = 0;
  }
  __syncthreads();
  const int column_tiles = static_cast<int>((p.y.extent[1] + gemm_columns_sm90 - 1) / gemm_columns_sm90);
  const int tiles = m.first_tile[p.groups] * column_tiles;
  const int inner = static_cast<int>(p.x.extent[1]), steps = (inner + 63) / 64;

  struct place {
    int g;
    std::int64_t row, rows;  // rows left from `row` on
    int column;
  };
  // Tiles of one group's rows follow one another column by column, so that these rows stay in the L2 cache.
  const auto locate = [&](int tile) {
    const int row_tile = tile / column_tiles;
    int low = 0, high = p.groups;  // first_tile[low] <= row_tile < first_tile[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (m.first_tile[middle] <= row_tile ? low : high) = middle;
    }
    const std::int64_t begin = p.offsets ? p.offsets[low] : 0,
                       end = p.offsets ? p.offsets[low + 1] : p.y.extent[0];
    const std::int64_t row = begin + std::int64_t{row_tile - m.first_tile[low]} * gemm_rows_sm90;
    return place{low, row, end - row, tile % column_tiles * gemm_columns_sm90};
  };

  int step = 0;  // counts through all tiles
  if (group == 2) {
    give_registers<152>();
    const int own = thread - 256;
    for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
      const place at = locate(tile);
      auto x = p.x;
      if constexpr (requires { x.stride; }) x.data += at.g * p.x_batch;
      const auto weight = p.weight_of(at.g);
      tile_loader<XView, gemm_rows_sm90> left(x, at.row, at.rows, own);
      tile_loader<std::remove_const_t<decltype(weight)>, gemm_columns_sm90> right(
          weight, at.column, weight.extent[0] - at.column, own);
      for (int i = 0; i < steps; ++i, ++step) {
        const int stage = step % gemm_stages_sm90, round = step / gemm_stages_sm90;
        if (round > 0) m.empty[stage].wait((round - 1) & 1);
        left.next(64 * i, i + 1 == steps, shared_address(m.x[stage]));
        right.next(64 * i, i + 1 == steps, shared_address(m.weight[stage]));
        m.full[stage].arrive_after_copies();
        fence_async_shared();
        m.full[stage].arrive();
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<176>();
  const int warp = thread % 128 / 32;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const place at = locate(tile);
    float sums[128];
    for (int i = 0; i < steps; ++i, ++step) {
      const int stage = step % gemm_stages_sm90, round = step / gemm_stages_sm90;
      m.full[stage].wait(round & 1);
      fence_async_shared();
      const std::uint32_t left = shared_address(m.x[stage]) + 64 * 128 * group,
                          right = shared_address(m.weight[stage]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma<256, 0>::run(sums, tile_descriptor(left + 32 * k, 1024, 0),
                           tile_descriptor(right + 32 * k, 1024, 0), i > 0 || k > 0);
      wgmma_commit();
      // The step before has been read once this one alone is under way.
      wgmma_wait<1>();
      if (i > 0) m.empty[(step - 1) % gemm_stages_sm90].arrive();
    }
    wgmma_wait<0>();
    keep(sums);
    m.empty[(step - 1) % gemm_stages_sm90].arrive();
    T* const to = p.y.data + at.g * p.y_batch + at.row * p.y.stride[0];
    const std::int64_t columns = p.y.extent[1];
    const bool pairs = columns % 2 == 0 && p.y.stride[0] % 2 == 0 && p.y_batch % 2 == 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = 64 * group + 16 * warp + lane / 4 + 8 * h;
      if (r >= at.rows) continue;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        const int c = at.column + 8 * j + 2 * (lane % 4);
        const float a = sums[4 * j + 2 * h], b = sums[4 * j + 2 * h + 1];
        T* const out = to + r * p.y.stride[0] + c;
        if (pairs && c + 1 < columns) {
          *reinterpret_cast<pack<T, 2>*>(out) = {{narrowed<T>(a), narrowed<T>(b)}};
        } else {
          if (c < columns) out[0] = narrowed<T>(a);
          if (c + 1 < columns) out[1] = narrowed<T>(b);
        }
      }
    }
  }
#endif
}

/// Queues the products where this device and these operands allow; false if not.
template <class T, class XView, class WView>
bool launch_gemm_sm90(const exec::cuda& p, std::string_view where,
                      const gemm_problem<T, XView, WView>& problem) {
  if (!loadable_16(problem.x) || !loadable_16(problem.weight) || problem.groups > most_gemm_groups ||
      reinterpret_cast<std::uintptr_t>(problem.y.data) % (2 * sizeof(T)) != 0 || problem.x.extent[1] == 0 ||
      !has_sm90a_code(p, gemm_sm90_kernel<T, XView, WView>))
    return false;
  const std::int64_t row_tiles =
      ceil_div(problem.y.extent[0], gemm_rows_sm90) + (problem.offsets ? problem.groups : 0);
  const std::int64_t most =
      row_tiles * ceil_div(problem.y.extent[1], gemm_columns_sm90) * (problem.offsets ? 1 : problem.groups);
  p.launch(where, gemm_sm90_kernel<T, XView, WView>,
           dim3(static_cast<unsigned>(std::min<std::int64_t>(most, p.device().multiprocessors))), 384,
           sizeof(gemm_memory_sm90) + 1024, problem);
  return true;
}

}  // namespace dsv4::detail
