// SPDX-License-Identifier: Apache-2.0
/// The second pass of a fold's gradients on Hopper: all that is as large as X, and the sums over tokens.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/hyper_connection_fold.hpp>

#include <cstdint>

namespace dsv4::detail {

/// What the first pass leaves of a token: comb (16), pre (4), r, r^3 mean(du w sum), the factor of X, 0; and
/// what it adds to the gradients of base (24) and scale (3), 0.
inline constexpr int fold_coefficients = 24, fold_terms = 28;

/// A tile of fold_dx_kernel: 16 tokens of 128 channels, of each X (4 rows), dX' (4) and du, whose pitch
/// spreads a column over the banks; then the tokens' coefficients and dz.
struct dx_tile {
  static constexpr int tokens = 16, channels = 128, pitch = 2 * channels + 16, row_count = 9 * tokens;
  static constexpr int coefficients = row_count * pitch,
                       dz = coefficients + tokens * fold_coefficients * int(sizeof(float)),
                       bytes = dz + tokens * 24 * int(sizeof(bf16)), slots = 5;
};
static_assert(dx_tile::bytes % 128 == 0);
inline constexpr int dx_warps = 16;

/// d (16, 8) += a (16, 16) b (16, 8), and the same over 8 terms.
__device__ __forceinline__ void multiply_16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                            std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_8(float (&d)[4], const std::uint32_t (&a)[2], std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

/// Block (slice of 128 channels of all streams, part of the tokens). Warp w holds channels 8 w .. 8 w + 7, as
/// products of 16 x 8 matrices do: lane 4 a + b has tokens a and a + 8, channels 2 b and 2 b + 1. fn stays in
/// registers, and so do the sums over tokens that its gradient is, and the norm's.
template <class T>
__global__ void __launch_bounds__(32 * dx_warps, 1)
    fold_dx_kernel(typename hyper_connection_fold<T, space::device>::inputs in,
                   typename hyper_connection_fold<T, space::device>::upstream up,
                   tensor_view<T, space::device> dx, const float* coefficients, const bf16* dz,
                   const float* terms, float* dfn_parts, float* dnorm_parts, float* term_parts) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  using tile_of = dx_tile;
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ float term_sums[dx_warps][27];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int width = static_cast<int>(in.x.extent[2]),
            first = static_cast<int>(blockIdx.x) * tile_of::channels,
            channels = min(tile_of::channels, width - first);
  // Part of the tokens: tiles n, the last tokens first, for these are in the L2 cache.
  const int rows = static_cast<int>(in.x.extent[0]), tiles = (rows + 15) / 16,
            part = static_cast<int>(blockIdx.y), parts = static_cast<int>(gridDim.y),
            count = (tiles - part + parts - 1) / parts;
  const auto first_token = [&](int n) { return std::int64_t{16} * (tiles - 1 - part - n * parts); };
  // Asks for tile n: a warp for a token's rows of 256 bytes, two at a time. Tokens that there are not are
  // zeros.
  const auto fetch = [&](int n) {
    if (n < count) {
      const std::int64_t t = first_token(n);
      const std::uint32_t to = shared_address(ring + n % tile_of::slots * tile_of::bytes);
      const int chunk = lane % 16, second = lane / 16;
      const bool valid = t + warp < rows && 8 * chunk < channels;
      const std::int64_t own = valid ? t + warp : 0, column = valid ? first + 8 * chunk : 0;
      const bf16 *const x = in.x.data + own * in.x.stride[0] + second * width + column,
                        *const d = up.dnext.data + own * up.dnext.stride[0] + second * width + column;
      const std::uint32_t at =
          to + static_cast<std::uint32_t>((9 * warp + second) * tile_of::pitch + 16 * chunk);
      copy_16(at, x, valid);
      copy_16(at + 2 * tile_of::pitch, x + 2 * width, valid);
      copy_16(at + 4 * tile_of::pitch, d, valid);
      copy_16(at + 6 * tile_of::pitch, d + 2 * width, valid);
      if (second == 0) copy_16(at + 8 * tile_of::pitch, up.du.data + own * up.du.stride[0] + column, valid);
      constexpr int coefficient_chunks = (tile_of::dz - tile_of::coefficients) / 16,
                    dz_chunks = (tile_of::bytes - tile_of::dz) / 16;
      if (thread < coefficient_chunks)
        copy_16(to + tile_of::coefficients + 16 * thread, coefficients + t * fold_coefficients + 4 * thread,
                true);
      else if (thread < coefficient_chunks + dz_chunks)
        copy_16(to + tile_of::coefficients + 16 * thread, dz + t * 24 + 8 * (thread - coefficient_chunks),
                true);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int n = 0; n < tile_of::slots - 1; ++n) fetch(n);

  const bool active = 8 * warp < channels;
  const int a = lane / 4, b = lane % 4, column = first + 8 * warp;
  std::uint32_t fn[4][3] = {};
  float norm[2] = {};
  if (active) {
    const auto pair = [&](int m, int j) {
      const std::int64_t c = std::int64_t{j} * width + column + a;
      return std::uint32_t{in.fn(m, c).bits} | std::uint32_t{in.fn(m + 1, c).bits} << 16;
    };
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int k = 0; k < 3; ++k) fn[j][k] = pair(8 * k + 2 * b, j);
    for (int e = 0; e < 2; ++e) norm[e] = widened<float>(in.norm(column + 2 * b + e));
  }
  float dfn[2][3][4] = {}, dnorm[2] = {};
  // The terms of a part's tiles are summed by its blocks in turn, a warp for a token.
  float own_term = 0;
  for (int n = static_cast<int>(blockIdx.x); n < count; n += static_cast<int>(gridDim.x)) {
    const std::int64_t t = first_token(n) + warp;
    if (t < rows && lane < 27) own_term += terms[t * fold_terms + lane];
  }
  if (lane < 27) term_sums[warp][lane] = own_term;
  for (int n = 0; n < count; ++n) {
    const std::int64_t t = first_token(n);
    const int tokens = static_cast<int>(min(std::int64_t{16}, rows - t));
    asm volatile("cp.async.wait_group %0;" ::"n"(tile_of::slots - 2) : "memory");
    __syncthreads();  // the tile is there for all, and all have left the one before
    fetch(n + tile_of::slots - 1);
    unsigned char* const data = ring + n % tile_of::slots * tile_of::bytes;
    const std::uint32_t address = shared_address(data);
    if (active) {
      // Matrix i of four: tokens 8 (i % 2) and on, numbers 8 (i / 2) and on; of two, numbers 16 and on.
      const std::uint32_t dz_at =
          address + static_cast<std::uint32_t>(tile_of::dz + lane % 16 * 48 + lane / 16 * 16);
      const std::uint32_t dz_rest = address + static_cast<std::uint32_t>(tile_of::dz + lane % 16 * 48 + 32);
      std::uint32_t left[4], rest[2];
      float sums[4][4] = {};
      load_matrices<false>(left, dz_at);
      load_matrices<false>(rest, dz_rest);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        multiply_16(sums[j], left, fn[j][0], fn[j][1]);
        multiply_8(sums[j], rest, fn[j][2]);
      }
      std::uint32_t right[4], right_rest[2];
      load_matrices<true>(right, dz_at);
      load_matrices<true>(right_rest, dz_rest);
#pragma unroll
      for (int p = 0; p < 2; ++p) {  // streams 2 p and 2 p + 1, above each other
        const int token = lane % 8 + lane / 16 * 8, stream = 2 * p + lane / 8 % 2;
        std::uint32_t x[4];
        load_matrices<true>(
            x, address + static_cast<std::uint32_t>((9 * token + stream) * tile_of::pitch + 16 * warp));
        multiply_16(dfn[p][0], x, right[0], right[1]);
        multiply_16(dfn[p][1], x, right[2], right[3]);
        multiply_16(dfn[p][2], x, right_rest[0], right_rest[1]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = a + 8 * half;
        unsigned char* const own = data + 9 * token * tile_of::pitch + 16 * warp + 4 * b;
        const auto two = [&](int which, int e) {
          const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(own + which * tile_of::pitch);
          return __uint_as_float(e == 0 ? word << 16 : word & 0xffff0000u);
        };
        const float4* const k =
            reinterpret_cast<const float4*>(data + tile_of::coefficients) + token * (fold_coefficients / 4);
        const float4 pre = k[4], last = k[5];
        const float each_pre[4] = {pre.x, pre.y, pre.z, pre.w};
        float x[4][2], d[4][2], through[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float sum = 0;
#pragma unroll
          for (int j = 0; j < 4; ++j)
            x[j][e] = two(j, e), d[j][e] = two(4 + j, e), sum += each_pre[j] * x[j][e];
          const float up_r = two(8, e) * last.x;
          dnorm[e] += up_r * sum;
          through[e] = up_r * norm[e] - last.y * sum;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float4 comb = k[j];
          float out[2];
#pragma unroll
          for (int e = 0; e < 2; ++e)
            out[e] = sums[j][2 * half + e] + each_pre[j] * through[e] + last.z * x[j][e] +
                     (comb.x * d[0][e] + comb.y * d[1][e] + (comb.z * d[2][e] + comb.w * d[3][e]));
          *reinterpret_cast<std::uint32_t*>(own + (4 + j) * tile_of::pitch) =
              std::uint32_t{narrowed<bf16>(out[0]).bits} | std::uint32_t{narrowed<bf16>(out[1]).bits} << 16;
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int own = thread + 32 * dx_warps * i, chunk = own % 16, token = own / 64, j = own / 16 % 4;
      if (token < tokens && 8 * chunk < channels)
        *reinterpret_cast<uint4*>(dx.data + (t + token) * dx.stride[0] + std::int64_t{j} * width + first +
                                  8 * chunk) =
            *reinterpret_cast<const uint4*>(data + (9 * token + 4 + j) * tile_of::pitch + 16 * chunk);
    }
  }

  if (thread < 27) {  // behind the barriers of at least one tile
    float sum = 0;
    for (int i = 0; i < dx_warps; ++i) sum += term_sums[i][thread];
    term_parts[(part * gridDim.x + blockIdx.x) * fold_terms + thread] = sum;
  }
  if (!active) return;
  if (dfn_parts)
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int k = 0; k < 3; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          dfn_parts[(part * 24 + 8 * k + 2 * b + e % 2) * 4 * width + std::int64_t{2 * p + e / 2} * width +
                    column + a] = dfn[p][k][e];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) dnorm[e] += __shfl_xor_sync(0xffffffffu, dnorm[e], step);
    if (a == 0) dnorm_parts[part * width + column + 2 * b + e] = dnorm[e];
  }
#endif
}

/// Adds the parts' sums, in ascending order, to the parameters' gradients.
template <class T>
__global__ void __launch_bounds__(256)
    fold_add_parts_kernel(const float* dfn_parts, const float* dnorm_parts, const float* term_parts,
                          int parts, int term_count,
                          typename hyper_connection_fold<T, space::device>::gradients g, std::int64_t width) {
  wait_for_previous_kernels();
  const auto add = [&](bf16& to, const float* from, std::int64_t step) {
    float sum = 0;
    for (int i = 0; i < parts; ++i) sum += from[i * step];
    to = narrowed<bf16>(widened<float>(to) + sum);
  };
  const std::int64_t columns = 4 * width, weights = dfn_parts ? 24 * columns : 0;
  std::int64_t i = global_thread();
  if (i < weights) return add(g.dfn(i / columns, i % columns), dfn_parts + i, weights);
  i -= weights;
  if (i < width) {
    if (g.dnorm.data) add(g.dnorm(i), dnorm_parts + i, width);
    return;
  }
  // The last block: a warp for each entry of base and scale.
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (blockIdx.x + 1 < gridDim.x) return;
  for (int c = static_cast<int>(threadIdx.x) / 32; c < 27; c += 8) {
    float sum = 0;
    for (int p = lane; p < term_count; p += 32) sum += term_parts[p * fold_terms + c];
    sum = warp_sum(sum);
    bf16* const to =
        c < 24 ? (g.dbase.data ? &g.dbase(c) : nullptr) : (g.dscale.data ? &g.dscale(c - 24) : nullptr);
    if (lane == 0 && to) *to = narrowed<bf16>(widened<float>(*to) + sum);
  }
}

}  // namespace dsv4::detail
