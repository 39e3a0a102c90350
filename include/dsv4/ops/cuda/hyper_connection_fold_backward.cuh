// SPDX-License-Identifier: Apache-2.0
/// Gradients of the fold of a residual site on Hopper, four bf16 streams: one pass over X and du makes each
/// token's coefficients, a second one everything that is as large as X.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/hyper_connection_fold_dx.cuh>
#include <dsv4/ops/cuda/streams_sm90.cuh>
#include <dsv4/ops/hyper_connection_fold.hpp>

namespace dsv4::detail {

__device__ __forceinline__ float sum_of_8(const float* v) {
  const float4 a = reinterpret_cast<const float4*>(v)[0], b = reinterpret_cast<const float4*>(v)[1];
  return (a.x + a.y + (a.z + a.w)) + (b.x + b.y + (b.z + b.w));
}

inline constexpr int dots_warps = 16, dots_gate_warps = 8, most_iterations = 32;

struct dots_memory {
  ring_barriers ring;
  phase_barrier ready[dots_gate_warps], taken[dots_gate_warps];
  alignas(16) float sums[dots_gate_warps][14][dots_warps + 4];
  float divisors[dots_gate_warps][16 * (2 * most_iterations - 1)];
};

/// Token after token: the products of streams with each other and with g = du w, from which warps of their
/// own make all coefficients, through Sinkhorn and back. Sums of u follow from those of X: the norm's dot
/// products are quadratic forms in pre.
template <int Packs>
__global__ void __launch_bounds__(32 * (dots_warps + dots_gate_warps + 1), 1)
    fold_dots_kernel(typename hyper_connection_fold<bf16, space::device>::inputs in,
                     matrix_view<const bf16, space::device> z,
                     typename hyper_connection_fold<bf16, space::device>::upstream up, float* coefficients,
                     bf16* dz, float* terms, int slots) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  constexpr int threads = 32 * dots_warps;
  extern __shared__ __align__(128) unsigned char ring[];
  dots_memory& m = *reinterpret_cast<dots_memory*>(ring + slots * 10 * in.x.extent[2]);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int width = static_cast<int>(in.x.extent[2]), octets = width / 8, row = 2 * width, bytes = 5 * row;
  const int rows = static_cast<int>(in.x.extent[0]), blocks = static_cast<int>(gridDim.x),
            count = (rows - 1 - static_cast<int>(blockIdx.x)) / blocks + 1;
  const auto token = [&](int i) { return std::int64_t{blockIdx.x} + i * blocks; };
  if (blockIdx.x == 0 && thread < (16 - rows % 16) % 16 * fold_coefficients)  // rows that fill up the tiles
    coefficients[std::int64_t{rows} * fold_coefficients + thread] = 0,
                                                          dz[std::int64_t{rows} * 24 + thread] = bf16{};
  if (thread == 0) {
    for (int i = 0; i < dots_gate_warps; ++i) m.ready[i].init(dots_warps), m.taken[i].init(1);
    m.ring.init(dots_warps);
  }
  __syncthreads();

  if (warp == dots_warps + dots_gate_warps) {  // brings the tokens
    if (lane > 0) return;
    for (int i = 0; i < count; ++i) {
      const std::int64_t t = token(i);
      phase_barrier& full = m.ring.fill(i, slots, bytes);
      const std::uint32_t to = shared_address(ring) + static_cast<std::uint32_t>(i % slots * bytes);
      copy_bulk(to, in.x.data + t * in.x.stride[0], 4 * row, full);
      copy_bulk(to + 4 * row, up.du.data + t * up.du.stride[0], row, full);
    }
    return;
  }

  if (warp >= dots_warps) {
    const int own = warp - dots_warps, h_row = lane < 24 ? lane : 0, quarter = lane % 4;
    const float eps = static_cast<float>(in.eps), norm_eps = static_cast<float>(in.norm_eps);
    const float scale = widened<float>(in.scale(h_row < 4   ? 0
                                                : h_row < 8 ? 1
                                                            : 2)),
                base = widened<float>(in.base(h_row)), channels = static_cast<float>(width);
    int parity = 0;
    for (int i = own; i < count; i += dots_gate_warps, parity ^= 1) {
      const std::int64_t t = token(i);
      const float own_z = widened<float>(z(t, h_row)),
                  dcomb = widened<float>(up.dcomb(t, lane % 16 / 4, quarter)),
                  dpost = widened<float>(up.dpost(t, quarter));
      m.ready[own].wait(parity);
      const float total = lane < 14 ? sum_of_8(m.sums[own][lane]) + sum_of_8(m.sums[own][lane] + 8) : 0.0f;
      __syncwarp();
      if (lane == 0) m.taken[own].arrive();
      const auto from = [](float v, int l) { return __shfl_sync(0xffffffffu, v, l); };

      const float squares = from(total, 0) + from(total, 4) + (from(total, 7) + from(total, 9));
      const float rho = rsqrtf(squares / (4 * channels) + norm_eps);
      const float h = own_z * rho * scale + base, s = gate_sigmoid(h);
      const float pre = from(s, quarter) + eps;
      float sum_x = 0;  // the sum of streams times X_quarter
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int a = min(j, quarter), b = max(j, quarter);
        sum_x += from(pre, j) * from(total, a * (7 - a) / 2 + b);
      }
      const float g_x = from(total, 10 + quarter);
      const float r = rsqrtf(line_sum(pre * sum_x, true) / channels + norm_eps);
      const float slope = r * r * r * (line_sum(pre * g_x, true) / channels);
      const float dpre = r * g_x - slope * sum_x;

      float softmax;
      const float comb = sinkhorn_4(from(h, 8 + lane % 16), in.sinkhorn_iters, eps, softmax, m.divisors[own]);
      __syncwarp();
      const float dentry = sinkhorn_4_backward(comb, dcomb, softmax, in.sinkhorn_iters, m.divisors[own]);
      const float of_entry = from(dentry, (lane + 24) % 32);
      const float dh = lane < 4    ? dpre * s * (1 - s)
                       : lane < 8  ? 2 * dpost * s * (1 - s)
                       : lane < 24 ? of_entry
                                   : 0.0f;
      const float along = warp_sum(dh * scale * own_z), dscale = dh * own_z * rho;
      const float dscale_0 = warp_sum(lane < 4 ? dscale : 0.0f),
                  dscale_1 = warp_sum(lane >= 4 && lane < 8 ? dscale : 0.0f),
                  dscale_2 = warp_sum(lane >= 8 ? dscale : 0.0f);
      if (lane < 24) {
        dz[t * 24 + lane] = narrowed<bf16>(rho * scale * dh);
        const float factor = -along * (rho * rho * rho) / (4 * channels);
        coefficients[t * fold_coefficients + lane] = lane < 16    ? comb
                                                     : lane < 20  ? pre
                                                     : lane == 20 ? r
                                                     : lane == 21 ? slope
                                                     : lane == 22 ? factor
                                                                  : 0.0f;
      }
      if (lane < 27)
        terms[t * fold_terms + lane] = lane < 24    ? dh
                                       : lane == 24 ? dscale_0
                                       : lane == 25 ? dscale_1
                                                    : dscale_2;
      __syncwarp();
    }
    return;
  }

  octet norm[Packs];
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    const int o = thread + p * threads;
    norm[p] = o < octets ? reinterpret_cast<const octet*>(in.norm.data)[o] : octet{};
  }
  for (int i = 0; i < count; ++i) {
    m.ring.wait(i, slots);
    const unsigned char* const tile = ring + i % slots * bytes;
    float sums[14] = {};
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      const int o = thread + p * threads;
      octet x[4], d{};
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = o < octets ? shared_octet(tile + j * row, o) : octet{};
      if (o < octets) d = shared_octet(tile + 4 * row, o);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float g = channel(d, c) * channel(norm[p], c);
        int pair = 0;
#pragma unroll
        for (int a = 0; a < 4; ++a) {
          const float xa = channel(x[a], c);
#pragma unroll
          for (int b = a; b < 4; ++b) sums[pair++] += xa * channel(x[b], c);
          sums[10 + a] += xa * g;
        }
      }
    }
    __syncwarp();
    if (lane == 0) m.ring.release(i, slots);
    const scattered_sum total(sums);
    const int to = i % dots_gate_warps;
    m.taken[to].wait(i / dots_gate_warps % 2 ^ 1);
    if (total.valid) m.sums[to][total.index][warp] = total.value;
    __syncwarp();
    if (lane == 0) m.ready[to].arrive();
  }
#endif
}

inline void launch_fold_backward(const exec::cuda& p, basic_workspace<space::device>& w,
                                 const typename hyper_connection_fold<bf16, space::device>::inputs& in,
                                 const matrix_view<const bf16, space::device>& z,
                                 const typename hyper_connection_fold<bf16, space::device>::upstream& up,
                                 const typename hyper_connection_fold<bf16, space::device>::gradients& g) {
  constexpr const char* where = "hyper_connection_fold";
  const workspace_scope scope(w);
  const std::int64_t rows = in.x.extent[0], width = in.x.extent[2], tiles = ceil_div(rows, 16);
  const int processors = p.device().multiprocessors;
  const std::int64_t slices = ceil_div(width, dx_tile::channels),
                     parts = std::clamp<std::int64_t>(processors / slices, 1, tiles);
  float* const coefficients = take<float>(w, tiles * 16, fold_coefficients).data;
  bf16* const dz = take<bf16>(w, tiles * 16, 24).data;
  float* const terms = take<float>(w, rows, fold_terms).data;
  float* const dfn_parts = g.dfn.data ? take<float>(w, parts, 24 * 4 * width).data : nullptr;
  float* const dnorm_parts = take<float>(w, parts, width).data;
  float* const term_parts = take<float>(w, parts * slices, fold_terms).data;
  const int token_bytes = static_cast<int>(10 * width),
            tokens = ring_slots(p, sizeof(dots_memory), token_bytes);
  const auto dots = [&](auto kernel) {
    p.launch(where, kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(rows, processors))),
             32 * (dots_warps + dots_gate_warps + 1),
             static_cast<std::size_t>(tokens) * token_bytes + sizeof(dots_memory), in, z, up, coefficients,
             dz, terms, tokens);
  };
  width <= 4096 ? dots(fold_dots_kernel<1>) : dots(fold_dots_kernel<2>);

  p.launch(where, fold_dx_kernel<bf16>, dim3(static_cast<unsigned>(slices), static_cast<unsigned>(parts)),
           32 * dx_warps, std::size_t{dx_tile::slots} * dx_tile::bytes, in, up, g.dx, coefficients, dz, terms,
           dfn_parts, dnorm_parts, term_parts);
  const std::int64_t sums = (dfn_parts ? 24 * 4 * width : 0) + width;
  p.launch(where, fold_add_parts_kernel<bf16>, dim3(static_cast<unsigned>(ceil_div(sums, 256) + 1)), 256, 0,
           dfn_parts, dnorm_parts, term_parts, static_cast<int>(parts), static_cast<int>(parts * slices), g,
           width);
}

}  // namespace dsv4::detail
