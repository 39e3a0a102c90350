// SPDX-License-Identifier: Apache-2.0
/// The fold of a residual site on the GPU: on Hopper four bf16 streams are read once; else its ops one by
/// one.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/hyper_connection.cuh>
#include <dsv4/ops/cuda/hyper_connection_fold_backward.cuh>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/ops/cuda/rms_norm.cuh>
#include <dsv4/ops/cuda/streams_sm90.cuh>
#include <dsv4/ops/hyper_connection_fold.hpp>

namespace dsv4 {

namespace detail {
/// fold_kernel has two groups of warps that walk over channels, each for a token of its own, then warps that
/// run Sinkhorn, each for a token of its own, and one that brings tokens.
inline constexpr int fold_groups = 2, fold_group_warps = 8, fold_walkers = fold_groups * fold_group_warps,
                     fold_gate_warps = 4;
template <bool Reopen>
inline constexpr int fold_threads = 32 * (fold_walkers + (Reopen ? 0 : fold_gate_warps) + 1);

struct fold_memory {
  ring_barriers ring;
  phase_barrier ready[fold_gate_warps], taken[fold_gate_warps];
  float rho[fold_gate_warps];
  alignas(16) float sums[fold_groups][21][fold_group_warps];
  alignas(16) float squares[fold_groups][fold_group_warps];
};

/// Token after token: the sum of squares, pre, the sum of streams, its norm; Packs octets of a stream per
/// thread. With `Reopen` also the products of X, v and dX', and dv; without, other warps make post and comb.
template <int Packs, bool Reopen>
__global__ void __launch_bounds__(fold_threads<Reopen>, 1)
    fold_kernel(typename hyper_connection_reopen<bf16, space::device>::inputs in,
                matrix_view<bf16, space::device> u, matrix_view<bf16, space::device> post,
                tensor_view<bf16, space::device> comb, matrix_view<bf16, space::device> dv,
                matrix_view<bf16, space::device> dpost, tensor_view<bf16, space::device> dcomb, int slots) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  constexpr int gate_warps = fold_gate_warps, threads = 32 * fold_group_warps;
  extern __shared__ __align__(128) unsigned char ring[];
  const auto& f = in.fold;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int width = static_cast<int>(f.x.extent[2]), octets = width / 8, row = 2 * width;
  const int bytes = row * (Reopen ? 9 : 4);
  fold_memory& m = *reinterpret_cast<fold_memory*>(ring + slots * bytes);
  const float eps = static_cast<float>(f.eps), norm_eps = static_cast<float>(f.norm_eps);
  const bool whole = f.scale.extent[0] == 3;
  // Last token first: it was the last that the product with fn brought into the L2 cache.
  const int rows = static_cast<int>(f.x.extent[0]), blocks = static_cast<int>(gridDim.x),
            last = rows - 1 - static_cast<int>(blockIdx.x), count = last / blocks + 1;
  const auto token = [&](int i) { return std::int64_t{last - i * blocks}; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < fold_gate_warps; ++i) m.ready[i].init(1), m.taken[i].init(1);
    m.ring.init(fold_group_warps);
  }
  __syncthreads();

  if (warp == fold_threads<Reopen> / 32 - 1) {  // brings the tokens
    if (lane > 0) return;
    for (int i = 0; i < count; ++i) {
      const std::int64_t t = token(i);
      phase_barrier& full = m.ring.fill(i, slots, bytes);
      const std::uint32_t to = shared_address(ring) + static_cast<std::uint32_t>(i % slots * bytes);
      copy_bulk(to, f.x.data + t * f.x.stride[0], 4 * row, full);
      if constexpr (Reopen) {
        copy_bulk(to + 4 * row, in.dnext.data + t * in.dnext.stride[0], 4 * row, full);
        copy_bulk(to + 8 * row, in.v.data + t * in.v.stride[0], row, full);
      }
    }
    return;
  }

  if (warp >= fold_walkers) {  // Sinkhorn
    if (!whole) return;
    const int own = warp - fold_walkers, entry = 8 + lane % 16;
    const float entry_scale = widened<float>(f.scale(2)), entry_base = widened<float>(f.base(entry));
    const float post_scale = widened<float>(f.scale(1)), post_base = widened<float>(f.base(4 + lane % 4));
    int parity = 0;
    for (int i = own; i < count; i += gate_warps, parity ^= 1) {
      const std::int64_t t = token(i);
      const float z = widened<float>(in.z(t, entry)), z_post = widened<float>(in.z(t, 4 + lane % 4));
      m.ready[own].wait(parity);
      const float rho = m.rho[own];
      __syncwarp();
      if (lane == 0) m.taken[own].arrive();
      float softmax;
      const float value =
          sinkhorn_4(z * rho * entry_scale + entry_base, f.sinkhorn_iters, eps, softmax, nullptr);
      if (lane < 16)
        comb(t, lane / 4, lane % 4) = narrowed<bf16>(value);
      else if (lane < 20)
        post(t, lane - 16) = narrowed<bf16>(2 * gate_sigmoid(z_post * rho * post_scale + post_base));
    }
    return;
  }

  // Lanes 0..3 make pre, with Reopen lanes 4..7 make post.
  const int group = warp / fold_group_warps, group_warp = warp % fold_group_warps,
            thread = static_cast<int>(threadIdx.x) % threads;
  const int gate = Reopen ? lane % 8 : lane % 4;
  const float gate_scale = widened<float>(f.scale(gate / 4)), gate_base = widened<float>(f.base(gate));
  const octet* const norm = reinterpret_cast<const octet*>(f.norm.data);
  float z_next = group < count ? widened<float>(in.z(token(group), gate)) : 0.0f;
  for (int i = group; i < count; i += fold_groups) {
    const std::int64_t t = token(i);
    const float z = z_next;
    if (i + fold_groups < count) z_next = widened<float>(in.z(token(i + fold_groups), gate));
    m.ring.wait(i, slots);
    const unsigned char* const tile = ring + i % slots * bytes;
    float sums[Reopen ? 21 : 1] = {};
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      const int o = thread + p * threads;
      if (o >= octets) break;
      octet x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = shared_octet(tile + j * row, o);
#pragma unroll
      for (int c = 0; c < 8; ++c)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[0] += channel(x[j], c) * channel(x[j], c);
      if constexpr (Reopen) {
        const octet v = shared_octet(tile + 8 * row, o);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const octet d = shared_octet(tile + (4 + k) * row, o);
#pragma unroll
          for (int c = 0; c < 8; ++c) {
            const float g = channel(d, c);
            sums[1 + k] += channel(v, c) * g;
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[5 + 4 * j + k] += channel(x[j], c) * g;
          }
        }
      }
    }
    const scattered_sum total(sums);
    if (total.valid) m.sums[group][total.index][group_warp] = total.value;
    sync_threads(1 + group, threads);
    const float rho = rsqrtf(sum_of_8(m.sums[group][0]) / static_cast<float>(4 * width) + norm_eps);
    if constexpr (Reopen) {
      if (group_warp == i / fold_groups % fold_group_warps && lane < 20) {
        const bf16 sum = narrowed<bf16>(sum_of_8(m.sums[group][1 + lane]));
        if (lane < 4)
          dpost(t, lane) = sum;
        else
          dcomb(t, (lane - 4) / 4, lane % 4) = sum;
      }
    } else if (thread == 0 && whole) {
      const int to = i % gate_warps;
      m.taken[to].wait(i / gate_warps % 2 ^ 1);
      m.rho[to] = rho;
      m.ready[to].arrive();
    }
    const float open = gate_sigmoid(z * rho * gate_scale + gate_base);
    float pre[4], closing[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pre[j] = __shfl_sync(0xffffffffu, open, j) + eps;
      if constexpr (Reopen) closing[j] = 2 * __shfl_sync(0xffffffffu, open, 4 + j);
    }
    float sum[Packs][8] = {}, squares = 0;
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      const int o = thread + p * threads;
      if (o >= octets) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const octet x = shared_octet(tile + j * row, o);
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[p][c] += pre[j] * channel(x, c);
      }
#pragma unroll
      for (int c = 0; c < 8; ++c) squares += sum[p][c] * sum[p][c];
      if constexpr (Reopen) {
        float g[8] = {};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const octet d = shared_octet(tile + (4 + k) * row, o);
#pragma unroll
          for (int c = 0; c < 8; ++c) g[c] += closing[k] * channel(d, c);
        }
        octet out;
#pragma unroll
        for (int c = 0; c < 8; ++c) out.value[c] = narrowed<bf16>(g[c]);
        reinterpret_cast<octet*>(dv.data + t * dv.stride[0])[o] = out;
      }
    }
    __syncwarp();
    if (lane == 0) m.ring.release(i, slots);
    squares = warp_sum(squares);
    if (lane == 0) m.squares[group][group_warp] = squares;
    sync_threads(1 + group, threads);
    const float r = rsqrtf(sum_of_8(m.squares[group]) / static_cast<float>(width) + norm_eps);
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      const int o = thread + p * threads;
      if (o >= octets) break;
      const octet w = norm[o];
      octet out;
#pragma unroll
      for (int c = 0; c < 8; ++c) out.value[c] = narrowed<bf16>(sum[p][c] * r * channel(w, c));
      reinterpret_cast<octet*>(u.data + t * u.stride[0])[o] = out;
    }
  }
#endif
}

/// Whether Hopper's kernels take this fold.
inline bool fold_fits(const exec::cuda& p, const hyper_connection_fold<bf16, space::device>::inputs& in) {
  return in.x.extent[0] > 0 && in.x.extent[0] < std::int64_t{1} << 31 && four_dense_streams(in.x) &&
         vectorisable(in.norm) && in.sinkhorn_iters <= most_iterations &&
         has_streams_code(p, fold_dx_kernel<bf16>);
}

/// fold_kernel for as many tokens at a time as there are multiprocessors; false where a token does not fit.
template <bool Reopen>
bool launch_fold(const exec::cuda& p, std::string_view where,
                 const typename hyper_connection_reopen<bf16, space::device>::inputs& in,
                 const matrix_view<bf16, space::device>& u, const matrix_view<bf16, space::device>& post,
                 const tensor_view<bf16, space::device>& comb, const matrix_view<bf16, space::device>& dv,
                 const matrix_view<bf16, space::device>& dpost,
                 const tensor_view<bf16, space::device>& dcomb) {
  const int bytes = static_cast<int>(in.fold.x.extent[2]) * 2 * (Reopen ? 9 : 4);
  const int slots = ring_slots(p, sizeof(fold_memory), bytes);
  if (slots == 0) return false;
  const auto run = [&](auto kernel) {
    p.launch(
        where, kernel,
        dim3(static_cast<unsigned>(std::min<std::int64_t>(in.fold.x.extent[0], p.device().multiprocessors))),
        fold_threads<Reopen>, static_cast<std::size_t>(slots * bytes) + sizeof(fold_memory), in, u, post,
        comb, dv, dpost, dcomb, slots);
  };
  in.fold.x.extent[2] <= 4096 ? run(fold_kernel<2, Reopen>) : run(fold_kernel<4, Reopen>);
  return true;
}
}  // namespace detail

template <>
inline constexpr bool has_fused_kernel<hyper_connection_fold<bf16, space::device>, exec::cuda> = true;
template <>
inline constexpr bool has_fused_kernel<hyper_connection_reopen<bf16, space::device>, exec::cuda> = true;

template <>
struct kernel<hyper_connection_fold<bf16, space::device>, exec::cuda> {
  using op = hyper_connection_fold<bf16, space::device>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out, const typename op::saved& save) {
    if (save.pre.data || save.sum.data || !detail::vectorisable(out.u) || !detail::fold_fits(p, in))
      return op::by_ops(p, w, in, out, save);
    const std::int64_t rows = in.x.extent[0];
    linear<bf16, space::device>::forward(p, {in.x.reshape(rows, 4 * in.x.extent[2]), in.fn}, {save.z});
    detail::launch_fold<false>(p, "hyper_connection_fold", {in, save.z, {}, {}}, out.u, out.post, out.comb,
                               {}, {}, {});
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                       const typename op::saved& kept, const typename op::upstream& up,
                       const typename op::gradients& g) {
    const bool dense = up.dnext.data && g.dx.data && detail::four_dense_streams(up.dnext) &&
                       detail::four_dense_streams(g.dx) && detail::vectorisable(up.du);
    if (!dense || in.scale.extent[0] != 3 || !detail::fold_fits(p, in))
      return op::backward_by_ops(p, w, in, kept, up, g);
    detail::launch_fold_backward(p, w, in, kept.z, up, g);
  }
};

template <>
struct kernel<hyper_connection_reopen<bf16, space::device>, exec::cuda> {
  using op = hyper_connection_reopen<bf16, space::device>;
  static void forward(const exec::cuda& p, basic_workspace<space::device>& w, const typename op::inputs& in,
                      const typename op::outputs& out) {
    const bool few =
        !out.dx.data && !out.pre.data && !out.sum.data && out.dv.data && out.dpost.data && out.dcomb.data;
    if (few && detail::all_vectorisable(in.v, out.u, out.dv) && detail::four_dense_streams(in.dnext) &&
        detail::fold_fits(p, in.fold) &&
        detail::launch_fold<true>(p, "hyper_connection_reopen", in, out.u, {}, {}, out.dv, out.dpost,
                                  out.dcomb))
      return;
    op::by_ops(p, w, in, out);
  }
};

}  // namespace dsv4
