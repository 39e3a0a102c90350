// SPDX-License-Identifier: Apache-2.0
/// Matrix products with few rows on the GPU: every weight is read once, by the warp that needs it.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>

#include <cstdint>
#include <string_view>

namespace dsv4::detail {

inline constexpr int gemv_warps = 8, gemv_outputs = 4;  ///< per block; columns per warp
inline constexpr int most_gemv_rows = 16;               ///< beyond these, tiles are faster

/// Elements of storage `E` that 16 bytes hold.
template <class E>
struct storage_16 {
  static constexpr int count = codes_per_16<E>;
};
template <>
struct storage_16<bf16> {
  static constexpr int count = 8;
};
template <class V>
struct view_storage {
  using type = typename V::format;
};
template <class U, int R>
struct view_storage<view<U, R, space::device>> {
  using type = std::remove_const_t<U>;
};

/// Elements [16-byte piece `piece`] of row r, as pairs of bf16.
template <class M, int N>
__device__ __forceinline__ void load_piece(const M& m, std::int64_t r, int piece, std::uint32_t (&out)[N]) {
  if constexpr (requires { m.codes; }) {
    using F = typename M::format;
    const uint4 codes = __ldg(reinterpret_cast<const uint4*>(m.row(r)) + piece);
    decode_16<F>(codes, m.row_scales(r)[piece * codes_per_16<F> / F::block_columns], out);
  } else {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(m.data + r * m.stride[0]) + piece);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  }
}

/// Block (columns, row, group): up to `Rows` rows that follow one another and have the same weights. A warp
/// sums `gemv_outputs` columns at a time, its lanes sharing the inner extent; x lies in shared memory, the
/// pieces that one instruction of a warp reads side by side.
template <class T, class XView, class WView, int Rows>
__global__ void __launch_bounds__(32 * gemv_warps) gemv_kernel(gemm_problem<T, XView, WView> p) {
  extern __shared__ __align__(16) unsigned char memory[];
  uint4* const shared_x = reinterpret_cast<uint4*>(memory);  // (Rows, 8 elements of a piece, pieces)
  std::int64_t row = blockIdx.y, rows = Rows;
  int g = static_cast<int>(blockIdx.z);
  if (p.offsets) {
    int low = 0, high = p.groups;  // the group of this row
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (p.offsets[middle] <= row ? low : high) = middle;
    }
    g = low;
    const std::int64_t begin = p.offsets[g], end = p.offsets[g + 1];
    if (row >= end || (row - begin) % Rows != 0) return;
    rows = min(rows, end - row);
  } else {
    row *= Rows;
    rows = min(rows, p.y.extent[0] - row);
  }
  auto x = p.x;
  if constexpr (requires { x.stride; }) x.data += g * p.x_batch;
  const auto weight = p.weight_of(g);
  using W = typename view_storage<std::remove_const_t<decltype(weight)>>::type;
  using X = typename view_storage<XView>::type;
  constexpr int per_w = storage_16<W>::count, per_x = storage_16<X>::count, eights = per_w / 8;
  const int inner = static_cast<int>(x.extent[1]), pieces = inner / per_w;
  for (int i = static_cast<int>(threadIdx.x); i < rows * (inner / per_x); i += 32 * gemv_warps) {
    const int r = i / (inner / per_x), piece = i % (inner / per_x);
    std::uint32_t out[per_x / 2];
    load_piece(x, row + r, piece, out);
#pragma unroll
    for (int j = 0; j < per_x / 8; ++j) {
      const int eighth = piece * (per_x / 8) + j;  // eight elements
      shared_x[(r * eights + eighth % eights) * pieces + eighth / eights] =
          make_uint4(out[4 * j], out[4 * j + 1], out[4 * j + 2], out[4 * j + 3]);
    }
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t columns = p.y.extent[1],
                     first = (std::int64_t{blockIdx.x} * gemv_warps + threadIdx.x / 32) * gemv_outputs;
  if (first >= columns) return;
  float sum[gemv_outputs][Rows] = {};
  for (int piece = lane; piece < pieces; piece += 32) {
    std::uint32_t w[gemv_outputs][per_w / 2];
#pragma unroll
    for (int o = 0; o < gemv_outputs; ++o) load_piece(weight, min(first + o, columns - 1), piece, w[o]);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      if (r >= rows) break;
#pragma unroll
      for (int j = 0; j < eights; ++j) {
        const uint4 v = shared_x[(r * eights + j) * pieces + piece];
        const std::uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float low = __uint_as_float(pair[i] << 16), high = __uint_as_float(pair[i] & 0xFFFF0000u);
#pragma unroll
          for (int o = 0; o < gemv_outputs; ++o) {
            sum[o][r] += __uint_as_float(w[o][4 * j + i] << 16) * low;
            sum[o][r] += __uint_as_float(w[o][4 * j + i] & 0xFFFF0000u) * high;
          }
        }
      }
    }
  }
#pragma unroll
  for (int o = 0; o < gemv_outputs; ++o)
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const float all = warp_sum(sum[o][r]);
      if (lane == 0 && r < rows && first + o < columns)
        p.y.data[g * p.y_batch + (row + r) * p.y.stride[0] + first + o] = narrowed<T>(all);
    }
}

/// Queues the products where rows are few and these operands allow; false if not.
template <class T, class XView, class WView>
bool launch_gemv(const exec::cuda& p, std::string_view where, const gemm_problem<T, XView, WView>& problem) {
  const std::int64_t rows = problem.y.extent[0], inner = problem.x.extent[1];
  if (rows > most_gemv_rows || rows == 0 || inner == 0 || !loadable_16(problem.x) ||
      !loadable_16(problem.weight))
    return false;
  const auto run = [&](auto kernel, int at_once) {
    const std::size_t bytes = static_cast<std::size_t>(at_once * inner) * sizeof(bf16);
    if (bytes > p.device().shared_memory_per_block) return false;
    const std::int64_t slots = problem.offsets ? rows : ceil_div(rows, at_once);
    p.launch(where, kernel,
             dim3(static_cast<unsigned>(ceil_div(problem.y.extent[1], gemv_warps * gemv_outputs)),
                  static_cast<unsigned>(slots), static_cast<unsigned>(problem.offsets ? 1 : problem.groups)),
             32 * gemv_warps, bytes, problem);
    return true;
  };
  // Rows of one group share a block; with many groups they rarely meet.
  if (rows == 1 || (problem.offsets && rows <= 8)) return run(gemv_kernel<T, XView, WView, 1>, 1);
  return run(gemv_kernel<T, XView, WView, 4>, 4);
}

}  // namespace dsv4::detail
