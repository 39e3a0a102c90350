// SPDX-License-Identifier: Apache-2.0
/// Products of FP8 inputs with MXFP4 weights on Hopper's FP8 matrix units; many at once. Weights are the
/// left operand, y^T = weight x^T: each warp decodes its own from shared memory to registers, and tiles have
/// as many columns as there are rows of x, in steps of 32.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemm_tiles_sm90.cuh>
#include <dsv4/ops/cuda/mxfp4_tiles_sm90.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/tensor_copy_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <cstdint>
#include <string_view>

namespace dsv4::detail {

/// A warpgroup's 64 channels of a tile: weights from shared memory to registers, products, sums.
template <class Problem>
class mxfp4_channels {
 public:
  using memory = gemm_mxfp4_memory;
  using shape = gemm_mxfp4_shape;

  __device__ mxfp4_channels(const Problem& p, memory& m, int blocks)
      : p_(p),
        m_(m),
        at_{m},
        blocks_(blocks),
        group_(static_cast<int>(threadIdx.x) / 128),
        lane_(static_cast<int>(threadIdx.x) % 32),
        row_(64 * group_ + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane_ / 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) codes_at_[k] = narrow_tile_offset(row_, k) + 2 * (lane_ % 4);
    // From memory: a constant the compiler would bring to a register for every use.
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(signs_) : "r"(shared_address(&m.signs)));
    whole_ = in_16(p.y, p.y_batch);
  }

  template <class Place>
  __device__ void tile(const Place& place) {
    at_->full.wait(at_.parity);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top_[h] = at_->top[row_ + 8 * h];
      table_[h] = e2m1_as_e4m3::under(top_[h]);
    }
    if (place.rows > 96)
      multiply<128>(place);
    else if (place.rows > 64)
      multiply<96>(place);
    else if (place.rows > 32)
      multiply<64>(place);
    else
      multiply<32>(place);
  }

 private:
  const Problem& p_;
  memory& m_;
  mxfp4_ring at_;
  int blocks_, group_, lane_, row_;
  int top_[2];
  e2m1_as_e4m3 table_[2];
  std::uint32_t signs_;
  std::uint32_t codes_at_[4];
  bool whole_;  ///< whether rows of y are copied

  using fragments = std::uint32_t[4][4];

  /// What a thread decodes of a stage.
  struct packed {
    std::uint32_t scales[2];
    std::uint16_t codes[4][4];
  };
  __device__ __forceinline__ packed load(const gemm_mxfp4_stage& stage) const {
    packed p;
    const std::uint32_t scales = shared_address(stage.scales + row_), codes = shared_address(stage.codes);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(p.scales[h]) : "r"(scales + 4 * 8 * h));
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        asm volatile("ld.shared.u16 %0, [%1];"
                     : "=h"(p.codes[k][i])
                     : "r"(codes + codes_at_[k] + 8 * 64 * (i % 2) + 8 * (i / 2)));
    return p;
  }
  /// table(scale, h) is for row h of a thread's two.
  template <class Table>
  __device__ __forceinline__ void decode(const packed& from, fragments& to, const Table& table) const {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const e2m1_as_e4m3 t = table(static_cast<int>(__byte_perm(from.scales[h], 0, 0x4440 + k)), h);
#pragma unroll
        for (int i = h; i < 4; i += 2) to[k][i] = t(from.codes[k][i], signs_);
      }
  }
  __device__ __forceinline__ void decode(const packed& from, fragments& to) const {
    decode(from, to, [&](int scale, int h) { return table_[h].at(scale); });
  }
  template <int N>
  __device__ __forceinline__ void start(const gemm_mxfp4_stage& stage, const fragments& weights,
                                        float (&part)[N / 2]) const {
    const std::uint64_t x = tile_descriptor(shared_address(stage.x), 1024, 0);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)  // descriptors count in 16 bytes
      wgmma_e4m3_registers<N>::run(part, weights[k], x + 2 * k, k > 0);
    wgmma_commit();
  }
  /// The scales of a thread's columns, two of every eight.
  template <int N>
  __device__ __forceinline__ void load_scales(const gemm_mxfp4_stage& stage, float (&x)[N / 4]) const {
    const std::uint32_t from = shared_address(stage.x_scale) + 8 * (lane_ % 4);
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(x[2 * j]), "=f"(x[2 * j + 1])
                   : "r"(from + 32 * j));
  }
  template <int N>
  static __device__ __forceinline__ void add(const float (&part)[N / 2], const float (&x)[N / 4],
                                             float (&sums)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = fmaf(part[i], x[i / 4 * 2 + i % 2], sums[i]);
  }
  /// The same, with weights' scales w.
  template <int N>
  static __device__ __forceinline__ void add(const float (&part)[N / 2], const float (&x)[N / 4],
                                             const float (&w)[2], float (&sums)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] += scaled(part[i], x[i / 4 * 2 + i % 2], w[i / 2 % 2]);
  }
  /// What weights decoded with the scale `top` are multiplied by. They have the other sign.
  static __device__ __forceinline__ float weight_scale(int top) {
    return -power_of_two(max(top - 127 - 6, -149));
  }

  template <int N, class Place>
  __device__ void multiply(const Place& place) {
    float sums[N / 2], part[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = 0;
    int left = blocks_;
    {
      fragments weights[2];
      bool plain = at_->passes == 0;
      decode(load(*at_), weights[0]);
      const auto finish = [&](gemm_mxfp4_stage& stage, const float(&x)[N / 4]) {
        wgmma_wait<0>();
        keep(part);
        stage.empty.arrive();
        add<N>(part, x, sums);
        --left;
      };
      // The next block's weights are decoded while this one's are multiplied.
      const auto block = [&](const fragments& now, fragments& next) {
        gemm_mxfp4_stage& stage = *at_;
        at_.advance();
        at_->full.wait(at_.parity);
        plain = at_->passes == 0;
        const packed following = load(*at_);
        start<N>(stage, now, part);
        float x[N / 4];
        load_scales<N>(stage, x);
        decode(following, next);
        finish(stage, x);
      };
      const auto last = [&](const fragments& now) {
        start<N>(*at_, now, part);
        float x[N / 4];
        load_scales<N>(*at_, x);
        finish(*at_, x);
        at_.advance();
      };
      while (plain && left > 1) {
        block(weights[0], weights[1]);
        if (!plain) break;
        if (left == 1) {
          last(weights[1]);
          break;
        }
        block(weights[1], weights[0]);
      }
      if (plain && left == 1) last(weights[0]);
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = fmaf(sums[i], weight_scale(top_[i / 2 % 2]), 0.0f);  // never -0
    for (; left > 0; --left) {  // from the first block on that is not a plain one
      at_->full.wait(at_.parity);
      gemm_mxfp4_stage& stage = *at_;
      const packed codes = load(stage);
      const int top[] = {range_of(codes.scales[0]).x, range_of(codes.scales[1]).x};
      const std::uint32_t n = stage.passes;
      const auto passes = max(max(n & 0xFF, n >> 8 & 0xFF), max(n >> 16 & 0xFF, n >> 24));
      for (int pass = 0; pass < max(1, static_cast<int>(passes)); ++pass) {
        const int below = e2m1_as_e4m3::room * pass;
        fragments weights;
        decode(codes, weights, [&](int scale, int h) { return e2m1_as_e4m3::in_pass(scale, top[h], below); });
        start<N>(stage, weights, part);
        wgmma_wait<0>();
        keep(part);
        float x[N / 4];
        load_scales<N>(stage, x);
        add<N>(part, x, {weight_scale(top[0] - below), weight_scale(top[1] - below)}, sums);
      }
      stage.empty.arrive();
      at_.advance();
    }
    store<N>(place, sums);
  }

  /// By way of shared memory, from where rows are copied while the next tile is at work.
  template <int N, class Place>
  __device__ __forceinline__ void store(const Place& at, const float (&sums)[N / 2]) {
    const int own = static_cast<int>(threadIdx.x) % 128;
    const std::uint32_t y = shared_address(m_.y[group_]);
    wait_for_stores<0>();
    sync_threads(1 + group_, 128);
    const std::uint32_t to =
        y + (lane_ / 16 * 8 + lane_ % 8) * shape::y_pitch + own / 32 * 32 + lane_ / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < N / 8; j += 2) {
      std::uint32_t pair[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) pair[k] = packed_pair<bf16>(sums[4 * j + 2 * k], sums[4 * j + 2 * k + 1]);
      store_blocks<true>(to + 8 * j * shape::y_pitch, pair);
    }
    fence_async_shared();
    sync_threads(1 + group_, 128);
    const int column = at.column + 64 * group_;
    const int width = static_cast<int>(max(std::int64_t{0}, min(p_.y.extent[1] - column, std::int64_t{64})));
    if (own < at.rows && width > 0) {
      auto* const row = p_.y.data + at.group * p_.y_batch + (at.row + own) * p_.y.stride[0] + column;
      if (whole_)
        store_bulk(row, y + own * shape::y_pitch, width * 2);
      else
        for (int i = 0; i < width; ++i)
          row[i] = reinterpret_cast<const bf16*>(m_.y[group_] + own * shape::y_pitch)[i];
    }
    end_store_group();
  }
};

/// As many blocks as multiprocessors, each with every gridDim.x-th tile. Two warpgroups multiply; the third
/// brings tiles.
template <class XView, class WView>
__global__ void __launch_bounds__(gemm_mxfp4_shape::threads, 1)
    gemm_mxfp4_kernel(gemm_problem<bf16, XView, WView> p, const __grid_constant__ CUtensorMap x) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  using problem = gemm_problem<bf16, XView, WView>;
  using shape = gemm_mxfp4_shape;
  using memory = gemm_mxfp4_memory;
  extern __shared__ __align__(1024) unsigned char raw[];
  memory& m = *reinterpret_cast<memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  if (thread == 0) {
    for (int s = 0; s < shape::stages; ++s) {
      m.stage[s].full.init(256);  // copies and stores of every thread of the producer
      m.stage[s].empty.init(256);
    }
    m.signs = 0x40404040u;
    fence_barrier_init();
  }
  using tile_order = gemm_tile_order<shape::channels, problem>;
  if (thread < 32) tile_order::sum_up(p, m.first_tile);
  __syncthreads();
  const tile_order tiles(p, m.first_tile);
  const int count = tiles.count();
  const int inner = static_cast<int>(p.x.extent[1]), blocks = (inner + gemm_fp8_depth - 1) / gemm_fp8_depth;

  if (group == 2) {
    give_registers<shape::producer_registers>();
    const int own = thread % 128;
    if (own == 0) prefetch_map(x);
    mxfp4_ring place{m};
    for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x)) {
      const auto at = tiles[tile];
      const auto weight = p.weight_of(at.group);
      const std::int64_t channels = weight.extent[0] - at.column;
      const int parts = static_cast<int>(min(at.rows + 31, std::int64_t{gemm_rows_sm90}) / mxfp4_box_rows);
      e2m1_copies codes(weight.row(at.column), channels, weight.row_stride, own);
      const e8m0_words<16> scales(weight.row_scales(at.column + min(std::int64_t{own}, channels - 1)),
                                  (inner + mxfp4::block_columns - 1) / mxfp4::block_columns);
      const e8m0_words<4> x_scales(p.x.row_scales(at.row + min(std::int64_t{own}, at.rows - 1)), blocks);
      const int top = scales.highest();
      std::uint32_t word[4], following[4], x_word[1], x_following[1];
      scales.load(0, following);
      x_scales.load(0, x_following);
      for (int first = 0; first < blocks; first += 4) {
        std::uint32_t passes[4];
        x_word[0] = x_following[0];
#pragma unroll
        for (int i = 0; i < 4; ++i) word[i] = following[i];
        if (first + 4 < blocks)
          scales.load(first / 4 + 1, following), x_scales.load(first / 4 + 1, x_following);
        bool plain = ordinary(top) && ordinary(x_word[0]);
#pragma unroll
        for (int i = 0; i < 4; ++i) plain = plain && covered(word[i], top);
        find_passes(plain, word, x_word[0], top, passes);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int block = first + i;
          if (block >= blocks) break;
          gemm_mxfp4_stage& stage = *place;
          stage.empty.wait(place.parity ^ 1);
          codes.copy(shared_address(stage.codes) + narrow_tile_offset(own / 4, own % 4), i,
                     inner - block * gemm_fp8_depth > 32 * (own % 4));
          stage.x_scale[own] =
              static_cast<float>(e8m0::from_bits(static_cast<std::uint8_t>(x_word[0] >> 8 * i)));
          stage.scales[own] = word[i];
          if (block == 0) stage.top[own] = static_cast<std::uint8_t>(top);
          if (own % 32 == 0) reinterpret_cast<std::uint8_t*>(&stage.passes)[own / 32] = passes[i];
          if (own == 0) {
            arrive_expecting(stage.full, parts * mxfp4_box_rows * gemm_fp8_depth);
            for (int j = 0; j < parts; ++j)
              copy_box(shared_address(stage.x) + j * mxfp4_box_rows * gemm_fp8_depth, x,
                       {block * gemm_fp8_depth / 2, static_cast<int>(at.row) + j * mxfp4_box_rows, 0, 0},
                       stage.full);
          } else {
            stage.full.arrive();
          }
          stage.full.arrive_after_copies();
          place.advance();
        }
        codes.next(4);
      }
    }
    wait_for_copies();
    return;
  }

  take_registers<shape::consumer_registers>();
  mxfp4_channels<problem> consumer(p, m, blocks);
  for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x))
    consumer.tile(tiles[tile]);
  wait_for_stores<0>();
#endif
}

/// Queues the products where this device and these operands allow; false if not.
template <class XView, class WView>
bool launch_gemm_mxfp4(const exec::cuda& p, std::string_view where,
                       const gemm_problem<bf16, XView, WView>& problem) {
  using shape = gemm_mxfp4_shape;
  if (!loadable_16(problem.x) || !loadable_16(problem.weight) || problem.groups > most_gemm_groups ||
      problem.x.extent[1] == 0 || !has_sm90a_code(p, gemm_mxfp4_kernel<XView, WView>))
    return false;
  // As 16-bit elements, of which tensor copies are.
  const auto& x = problem.x;
  const copied_tensor rows{x.codes, x.extent[1] / 2,  x.extent[0],      1,
                           1,       x.row_stride / 2, x.row_stride / 2, x.row_stride / 2};
  p.launch(where, gemm_mxfp4_kernel<XView, WView>, gemm_grid_sm90<shape::channels>(p, problem),
           shape::threads, sizeof(gemm_mxfp4_memory) + 1024, problem,
           tensor_map<bf16>(where, rows, gemm_fp8_depth / 2, mxfp4_box_rows));
  return true;
}

}  // namespace dsv4::detail
