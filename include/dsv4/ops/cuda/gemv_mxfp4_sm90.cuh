// SPDX-License-Identifier: Apache-2.0
/// Products of single rows in FP8 with MXFP4 weights on Hopper's FP8 matrix units. Weights are the left
/// operand: a warp decodes its own, 16 rows of them, from shared memory to registers, where a code's bits are
/// those of an E4M3 2^6 times smaller, once they are moved.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemv_columns.cuh>
#include <dsv4/ops/cuda/loose_pairs.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace dsv4::detail {

/// What a warp has in shared memory of a step, and how much of that a block. A row's 16-byte columns lie
/// where neither copies, which bring four of each of eight rows, nor matrix loads meet in a bank.
struct gemv_mxfp4_shape {
  static constexpr int most_warpgroups = 3, stages = 4;
  static constexpr int rows = 16, channels = 256, row_bytes = channels / 2;
  static constexpr int scales_at = rows * row_bytes, scales_of_row = channels / mxfp4::block_columns,
                       stage_bytes = scales_at + rows * scales_of_row;

  static __device__ __forceinline__ int offset(int row, int column) {
    return row * row_bytes + (column ^ row % 8 / 2 ^ row % 2 * 4) * 16;
  }
};

/// A row of x as right operands. A product's eight columns would all be the same, so a block of 32 channels
/// has one of its own, 2 (block % 4), and zeros are in the others: the sums of four blocks, which have a
/// scale each, come from the matrix unit side by side, in different lanes.
struct gemv_mxfp4_x {
  unsigned char* codes;  // (inner / 16, 8, 16): even channels of a block, then odd ones, as weights come
  int* scales;           // (inner / 128), as bits

  static constexpr int block = mxfp4::block_columns, scaled_block = fp8_activation::block_columns;

  DSV4_HOST_DEVICE static constexpr std::int64_t bytes(std::int64_t inner) {
    return inner * 8 + inner / scaled_block * static_cast<std::int64_t>(sizeof(int));
  }
  __device__ gemv_mxfp4_x(unsigned char* memory, int inner)
      : codes(memory), scales(reinterpret_cast<int*>(memory + inner * 8)) {}

  template <class M>
  __device__ void bring(const M& m, std::int64_t row, int inner) {
    for (int i = static_cast<int>(threadIdx.x); i < inner / 16; i += static_cast<int>(blockDim.x)) {
      const fp8_piece piece = load_codes(m, row, i);
      const int own = i / 2 % 4 * 2, half = i % 2;
      uint4* const all = reinterpret_cast<uint4*>(codes) + i * 8;
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // other columns at a time in neighbouring threads
        const int column = (i + j) % 8;
        if (column != own) all[column] = uint4{};
      }
      const uint4 c = piece.codes;
      uint2* const even = reinterpret_cast<uint2*>(codes + ((i - half) * 8 + own) * 16) + half;
      even[0] = make_uint2(__byte_perm(c.x, c.y, 0x6420), __byte_perm(c.z, c.w, 0x6420));
      even[16] = make_uint2(__byte_perm(c.x, c.y, 0x7531), __byte_perm(c.z, c.w, 0x7531));
      if (i % (scaled_block / 16) == 0) scales[i / (scaled_block / 16)] = piece.scale.bits;
    }
  }
  /// Of block 0; those of the next are 16 further. Not swizzled: groups of eight columns are 128 bytes apart.
  __device__ std::uint64_t operand() const {
    return (shared_address(codes) & 0x3FFFF) >> 4 | std::uint64_t{8} << 16 | std::uint64_t{8} << 32;
  }
};

/// 32 channels of rows g and g + 8 of a warp's 16, as lane 4 g + l has them of ldmatrix, as a left operand.
__device__ __forceinline__ void decode_e2m1(std::uint32_t upper, std::uint32_t lower,
                                            std::uint32_t (&out)[4]) {
  out[0] = (upper << 4 & 0x80808080u) | (upper << 2 & 0x1C1C1C1Cu);
  out[1] = (lower << 4 & 0x80808080u) | (lower << 2 & 0x1C1C1C1Cu);
  out[2] = (upper & 0x80808080u) | (upper >> 2 & 0x1C1C1C1Cu);
  out[3] = (lower & 0x80808080u) | (lower >> 2 & 0x1C1C1C1Cu);
}

/// Four scales to shared memory, later or, from where no copy can, now.
__device__ __forceinline__ void copy_scales(std::uint32_t to, const e8m0* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % 4 == 0) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
  } else {
    for (int i = 0; i < 4; ++i)
      asm volatile("st.shared.u8 [%0], %1;" ::"r"(to + i), "r"(int{from[i].bits}) : "memory");
  }
}

/// sums[h] += part[q][2 h], which four blocks sum up to, times the scales of x and of weights, as bits.
__device__ __forceinline__ void add_scaled(const float (&part)[2][4], const int (&x)[2], const int (&w)[2][2],
                                           float (&sums)[2]) {
  bool plain = x[0] != 255 && x[1] != 255;  // and the scales' product is a normal number
  float both[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int own = w[i / 2][i % 2], exponent = x[i / 2] + own - 127;
    plain = plain && static_cast<unsigned>(exponent - 1) < 254 && own != 255;
    both[i / 2][i % 2] = __int_as_float(exponent << 23);
  }
  if (plain) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i % 2] = fmaf(part[i / 2][i % 2 * 2], both[i / 2][i % 2], sums[i % 2]);
  } else {
    const auto value = [](int bits) {
      return static_cast<float>(e8m0::from_bits(static_cast<std::uint8_t>(bits)));
    };
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[i % 2] += scaled(part[i / 2][i % 2 * 2], value(x[i / 2]), value(w[i / 2][i % 2]));
  }
}

/// Block (columns, row). A warpgroup takes 64 rows of weights at a time: each warp has 16 columns, or 8 with
/// their gates, and the next steps of its own weights on their way.
template <class XView, class WView, class Second>
__global__ void __launch_bounds__(128 * gemv_mxfp4_shape::most_warpgroups, 1)
    gemv_mxfp4_kernel(gemm_problem<bf16, XView, WView> p, Second second) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  using shape = gemv_mxfp4_shape;
  constexpr bool gated = Second::gated;
  constexpr int stages = shape::stages, warp_columns = gated ? 8 : 16;
  extern __shared__ __align__(16) unsigned char memory[];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const std::int64_t row = blockIdx.y;
  const int group = p.offsets ? group_of_row(p, row) : 0;
  if (group >= p.groups) return;

  const gemv_columns<bf16, XView, WView, Second> columns{p, second, group};
  const int inner = static_cast<int>(p.x.extent[1]), per_unit = inner / shape::channels;
  const int units = (columns.count() + 4 * warp_columns - 1) / (4 * warp_columns),
            stride = static_cast<int>(gridDim.x * blockDim.x) / 128;
  int unit = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * (warp / 4);
  const int steps = unit < units ? ((units - 1 - unit) / stride + 1) * per_unit : 0;
  const auto column_of = [&](int u, int r) {  // of row r of the warp's 16
    return (4 * u + warp % 4) * warp_columns + r % warp_columns;
  };
  const auto weights_of = [&](int u, int r) { return columns.weights_of(column_of(u, r), r >= 8); };

  gemv_mxfp4_x x(memory, inner);
  const std::uint32_t ring = shared_address(memory) +
                             static_cast<std::uint32_t>(gemv_mxfp4_x::bytes(inner) + 15) / 16 * 16 +
                             static_cast<std::uint32_t>(warp * stages * shape::stage_bytes);
  // Copies: of rows lane / 4 and 8 more columns lane % 4 and 4 more; of row lane / 2 half of the scales.
  int asked = 0, asked_at = 0, asked_unit = unit;
  std::uint32_t asked_stage = ring;
  const uint4* from[2];
  const e8m0* scales_from;
  const std::uint32_t to[] = {static_cast<std::uint32_t>(shape::offset(lane / 4, lane % 4)),
                              static_cast<std::uint32_t>(shape::offset(lane / 4, lane % 4 + 4))},
                      scales_to = static_cast<std::uint32_t>(shape::scales_at + lane * 4);
  const auto ask = [&] {
    if (asked < steps) {
      if (asked_at == 0) {
#pragma unroll
        for (int h = 0; h < 2; ++h) from[h] = weights_of(asked_unit, lane / 4 + 8 * h).pieces + lane % 4;
        scales_from = weights_of(asked_unit, lane / 2).scales + lane % 2 * 4;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          copy_16(asked_stage + to[i] + h * 8 * shape::row_bytes, from[h] + 4 * i, true);
        from[h] += shape::row_bytes / 16;
      }
      copy_scales(asked_stage + scales_to, scales_from);
      scales_from += shape::scales_of_row;
      if (++asked_at == per_unit) asked_at = 0, asked_unit += stride;
      ++asked;
      asked_stage += shape::stage_bytes;
      if (asked_stage == ring + stages * shape::stage_bytes) asked_stage = ring;
    }
    end_copy_group();
  };
  // The first weights wait for x, and x for what is asked for before it.
  ask();
  x.bring(p.x, row, inner);
  for (int s = 1; s < stages - 1; ++s) ask();
  fence_async_shared();
  __syncthreads();

  // Matrices 0 and 1 of a load are rows 0 to 7 and 8 to 15 of an even column, 2 and 3 of the next.
  std::uint32_t load_from[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    load_from[j] = static_cast<std::uint32_t>(shape::offset(lane % 16, 2 * j + lane / 16));
  float sums[2] = {};
  std::uint32_t stage = ring;
  std::uint64_t operand = x.operand();
  const int* scales_of_x = x.scales;
  for (int step = 0, at = 0; step < steps; ++step) {
    wait_for_copy_groups<stages - 2>();
    __syncwarp();
    ask();  // where the step before was
    std::uint32_t weights[8][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t codes[4];
      load_matrices<false>(codes, stage + load_from[j]);
      decode_e2m1(codes[0], codes[1], weights[2 * j]);
      decode_e2m1(codes[2], codes[3], weights[2 * j + 1]);
    }
    float part[2][4];
    wgmma_fence();
#pragma unroll
    for (int b = 0; b < 8; ++b)
      wgmma_e4m3_registers<8>::run(part[b / 4], weights[b], operand + 16 * b, b % 4 > 0);
    wgmma_commit();
    // Of four blocks, and of a row of weights: that of this lane's.
    const int x_scale[] = {scales_of_x[0], scales_of_x[1]};
    int scale[2][2];
#pragma unroll
    for (int q = 0; q < 2; ++q)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        asm volatile(
            "ld.shared.u8 %0, [%1];"
            : "=r"(scale[q][h])
            : "r"(stage + shape::scales_at + (lane / 4 + 8 * h) * shape::scales_of_row + 4 * q + lane % 4)
            : "memory");
    wgmma_wait<0>();
    keep(part[0]);
    keep(part[1]);
    add_scaled(part, x_scale, scale, sums);
    operand += 16 * 8, scales_of_x += 2;
    stage += shape::stage_bytes;
    if (stage == ring + stages * shape::stage_bytes) stage = ring;
    if (++at < per_unit) continue;
      // The unit's last step.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sums[h] += __shfl_xor_sync(0xffffffffu, sums[h], 1);
      sums[h] += __shfl_xor_sync(0xffffffffu, sums[h], 2);
      sums[h] *= 64;
    }
    if (lane % 4 == 0) {
      if constexpr (gated) {
        columns.store_gated(column_of(unit, lane / 4), row, sums[0], sums[1]);
      } else {
        columns.store_column(column_of(unit, lane / 4), row, sums[0]);
        columns.store_column(column_of(unit, lane / 4 + 8), row, sums[1]);
      }
    }
    sums[0] = sums[1] = 0;
    at = 0, unit += stride;
    operand = x.operand(), scales_of_x = x.scales;
  }
#endif
}

/// Queues the products where rows, each of a group of its own, are for this kernel; false if not.
template <class T, class XView, class WView, class Second>
bool launch_gemv_mxfp4(const exec::cuda& p, std::string_view where,
                       const gemm_problem<T, XView, WView>& problem, const Second& second) {
  if constexpr (std::is_same_v<T, bf16> &&
                std::is_same_v<typename view_storage<XView>::type, fp8_activation> &&
                std::is_same_v<typename view_storage<WView>::type, mxfp4> && !Second::beside) {
    using shape = gemv_mxfp4_shape;
    const std::int64_t rows = problem.y.extent[0], inner = problem.x.extent[1],
                       multiprocessors = p.device().multiprocessors,
                       units = ceil_div(problem.y.extent[1], Second::gated ? 32 : 64);
    // Fewer columns are for kernels that split sums.
    if (inner % shape::channels != 0 || rows * units < multiprocessors || (!problem.offsets && rows > 1) ||
        (!problem.offsets && problem.groups > 1))
      return false;
    const std::int64_t warpgroups =
        std::clamp<std::int64_t>(ceil_div(rows * units, multiprocessors), 1, shape::most_warpgroups);
    const std::size_t bytes = static_cast<std::size_t>(ceil_div(gemv_mxfp4_x::bytes(inner), 16) * 16) +
                              static_cast<std::size_t>(warpgroups * 4 * shape::stages * shape::stage_bytes);
    if (bytes > p.device().shared_memory_per_block ||
        !has_sm90a_code(p, gemv_mxfp4_kernel<XView, WView, Second>))
      return false;
    const std::int64_t blocks =
        std::min(ceil_div(units, warpgroups), std::max<std::int64_t>(1, multiprocessors / rows));
    p.launch(where, gemv_mxfp4_kernel<XView, WView, Second>,
             dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)),
             static_cast<unsigned>(128 * warpgroups), bytes, problem, second);
    return true;
  }
  return false;
}

}  // namespace dsv4::detail
