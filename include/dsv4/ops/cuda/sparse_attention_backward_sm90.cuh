// SPDX-License-Identifier: Apache-2.0
/// Gradients of sparse attention on Hopper's matrix units: bf16, heads of 512 channels. Queries sum their own
/// gradient over the keys, as in forward; blocks of 64 keys sum theirs over the queries, in parts that are
/// added up in order. Or, with sums in any order, one pass over the queries does all.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>
#include <dsv4/ops/cuda/sm90.cuh>
#include <dsv4/ops/cuda/sparse_attention_dq_sm90.cuh>
#include <dsv4/ops/cuda/wgmma_sm90.cuh>
#include <dsv4/ops/sparse_attention.hpp>

#include <cstdint>

namespace dsv4::detail {

struct alignas(1024) attention_dkey_memory {
  std::uint8_t keys[64 * 1024], q[64 * 1024], d[64 * 1024];
  std::uint8_t p[2][8 * 1024], ds[8 * 1024];
  phase_barrier full_q, full_d, empty_q, empty_d;
};

/// Keys of one kind and who saw them.
struct attention_seen {
  const bf16* keys;
  std::int64_t stride, count;
  bool local;
  const unsigned* bits;  ///< (count, words), where entries were selected
  std::int64_t words;
  int parts;    ///< of the queries
  float* sums;  // (parts, count rounded up to 64, 512)

  /// The queries that key `k` may be seen by, without regard to `bits`: [begin, end).
  __device__ std::int64_t begin(const bf16_attention::inputs& in, std::int64_t k) const {
    const std::int64_t position = local          ? in.first_local + k
                                  : in.ratio > 0 ? (k + 1) * in.ratio - 1
                                                 : in.first_position;
    return max(std::int64_t{0}, bits ? 0 : position - in.first_position);
  }
  __device__ std::int64_t end(const bf16_attention::inputs& in, std::int64_t k) const {
    const std::int64_t rows = in.q.extent[0];
    if (!local) return bits || in.ratio > 0 ? rows : 0;
    return max(std::int64_t{0}, min(rows, in.first_local + k + in.window - in.first_position));
  }
};

/// Block (64 keys, part of the queries). One warpgroup makes weights, the other their gradients; then both
/// sum half of the channels of the keys' gradient.
template <class L>
__global__ void __launch_bounds__(384, 1)
    attention_dkey_sm90_kernel(bf16_attention::inputs in, matrix_view<L, space::device> lse,
                               tensor_view<const bf16, space::device> do_, const float* delta,
                               attention_seen seen) {
  wait_for_previous_kernels();
#if DSV4_SM90A
  extern __shared__ __align__(1024) unsigned char raw[];
  attention_dkey_memory& m =
      *reinterpret_cast<attention_dkey_memory*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  const int head_groups = static_cast<int>(in.q.extent[1] / 64);
  const std::int64_t first = std::int64_t{blockIdx.x} * 64, last = min(first + 64, seen.count) - 1;
  // This part of the queries that may have seen one of these keys.
  const std::int64_t low = seen.begin(in, first), high = max(low, seen.end(in, last));
  const std::int64_t begin = low + (high - low) * blockIdx.y / seen.parts,
                     end = low + (high - low) * (blockIdx.y + 1) / seen.parts;
  if (thread == 0) {
    m.full_q.init(128), m.full_d.init(128);
    m.empty_q.init(256), m.empty_d.init(256);
    fence_barrier_init();
  }
  for (int i = thread; i < 64 * 64; i += 384) {
    const int r = i / 64, column = i % 64;
    const bool valid = first + r <= last;
    copy_16(shared_address(m.keys) + column / 8 * 8192 + tile_offset(r, column % 8),
            seen.keys + (valid ? first + r : first) * seen.stride + 8 * column, valid);
  }
  wait_for_copies();
  fence_async_shared();
  __syncthreads();

  // Calls visit(query, head group) for all that count, the same in every warp.
  const auto for_each = [&](const auto& word_begins, const auto& visit) {
    for (std::int64_t word = begin / 32; word * 32 < end; ++word) {
      unsigned mask = 0xffffffffu;
      if (seen.bits) {
        mask = first + lane <= last ? seen.bits[(first + lane) * seen.words + word] : 0u;
        if (first + 32 + lane <= last) mask |= seen.bits[(first + 32 + lane) * seen.words + word];
        mask = __reduce_or_sync(0xffffffffu, mask);
      }
      if (word * 32 < begin) mask &= 0xffffffffu << (begin - word * 32);
      if (word * 32 + 32 > end) mask &= 0xffffffffu >> (word * 32 + 32 - end);
      if (mask) word_begins(word);
      for (; mask; mask &= mask - 1)
        for (int h = 0; h < head_groups; ++h) visit(word * 32 + __ffs(static_cast<int>(mask)) - 1, h);
    }
  };

  if (group == 2) {
    give_registers<40>();
    int n = 0;
    for_each([](std::int64_t) {},
             [&](std::int64_t t, int h) {
               const auto load = [&](phase_barrier& full, phase_barrier& empty, std::uint8_t* tile,
                                     const tensor_view<const bf16, space::device>& from) {
                 if (n > 0) empty.wait((n - 1) & 1);
#pragma unroll 8
                 for (int i = 0; i < 32; ++i) {
                   const int at = thread - 256 + 128 * i, r = at / 64, column = at % 64;
                   copy_16(shared_address(tile) + column / 8 * 8192 + tile_offset(r, column % 8),
                           from.data + t * from.stride[0] + (64 * h + r) * from.stride[1] + 8 * column, true);
                 }
                 full.arrive_after_copies();
               };
               load(m.full_q, m.empty_q, m.q, in.q);
               load(m.full_d, m.empty_d, m.d, do_);
               ++n;
             });
    wait_for_copies();
    return;
  }

  take_registers<232>();
  const int warp = thread % 128 / 32, row = 16 * warp + lane / 4;  // keys first + row, and row + 8
  constexpr float log2e = 1.4426950408889634f;
  const float scale = static_cast<float>(in.scale);
  float sums[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) sums[i] = 0;
  unsigned own_bits[2] = {0xffffffffu, 0xffffffffu};
  std::int64_t from[2], until[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t k = first + row + 8 * r;
    from[r] = k <= last ? seen.begin(in, k) : 0;
    until[r] = k <= last ? seen.end(in, k) : 0;
  }
  int n = 0;
  for_each(
      [&](std::int64_t word) {
        if (!seen.bits) return;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          own_bits[r] =
              first + row + 8 * r <= last ? seen.bits[(first + row + 8 * r) * seen.words + word] : 0u;
      },
      [&](std::int64_t t, int h) {
        // Heads 8 j + 2 (lane % 4) + ... of the group: what this warpgroup needs to know of them.
        float2 of_head[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const std::int64_t head = 64 * h + 8 * j + 2 * (lane % 4);
          if (group == 0)
            of_head[j] = make_float2(static_cast<float>(lse(t, head)) * log2e,
                                     static_cast<float>(lse(t, head + 1)) * log2e);
          else
            of_head[j] = *reinterpret_cast<const float2*>(delta + t * in.q.extent[1] + head);
        }
        const int parity = n & 1;
        (group == 0 ? m.full_q : m.full_d).wait(parity);
        fence_async_shared();
        float products[32];
        // Computed anew for every query: descriptors that are kept would take the registers.
        std::uint32_t left = shared_address(m.keys), right = shared_address(group == 0 ? m.q : m.d);
        asm volatile("" : "+r"(left), "+r"(right));
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < 32; ++c) {
          const std::uint32_t at = c / 4 * 8192 + c % 4 * 32;
          wgmma<64, 0>::run(products, tile_descriptor(left + at, 1024, 0),
                            tile_descriptor(right + at, 1024, 0), c > 0);
        }
        wgmma_commit();
        bool counts[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) counts[r] = t >= from[r] && t < until[r] && own_bits[r] >> (t % 32) & 1;
        wgmma_wait<0>();
        keep(products);
        std::uint8_t* const weights = m.p[parity];
        if (group == 0) {
#pragma unroll
          for (int j = 0; j < 32; j += 2) {
            const int r = j / 2 % 2;
            const float a = counts[r] ? exp2_fast(products[j] * scale * log2e - of_head[j / 4].x) : 0.0f;
            const float b = counts[r] ? exp2_fast(products[j + 1] * scale * log2e - of_head[j / 4].y) : 0.0f;
            *reinterpret_cast<__nv_bfloat162*>(weights + tile_offset(row + 8 * r, j / 4) + 4 * (lane % 4)) =
                __floats2bfloat162_rn(a, b);
          }
          fence_async_shared();
        }
        sync_threads(1, 256);
        (group == 0 ? m.full_d : m.full_q).wait(parity);
        fence_async_shared();
        const auto add = [&](const std::uint8_t* by, const std::uint8_t* rows) {
          std::uint32_t values = shared_address(rows) + 4 * 8192 * group, factors = shared_address(by);
          asm volatile("" : "+r"(values), "+r"(factors));
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k)  // 16 heads each
            wgmma<256, 1>::run(sums, tile_descriptor(factors + 32 * k, 1024, 0),
                               tile_descriptor(values + 16 * 128 * k, 1024, 8192), true);
          wgmma_commit();
        };
        add(weights, m.d);
        if (group == 1) {
#pragma unroll
          for (int j = 0; j < 32; j += 2) {
            const int r = j / 2 % 2;
            const std::uint32_t at = tile_offset(row + 8 * r, j / 4) + 4 * (lane % 4);
            const __nv_bfloat162 p = *reinterpret_cast<const __nv_bfloat162*>(weights + at);
            *reinterpret_cast<__nv_bfloat162*>(m.ds + at) =
                __floats2bfloat162_rn(__low2float(p) * (products[j] - of_head[j / 4].x) * scale,
                                      __high2float(p) * (products[j + 1] - of_head[j / 4].y) * scale);
          }
          fence_async_shared();
        }
        sync_threads(2, 256);
        add(m.ds, m.q);
        wgmma_wait<1>();
        m.empty_d.arrive();
        wgmma_wait<0>();
        keep(sums);
        m.empty_q.arrive();
        ++n;
      });
  float* const to = seen.sums + (blockIdx.y * gridDim.x * 64 + first) * 512;
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 32; ++j)
      *reinterpret_cast<float2*>(to + (row + 8 * r) * 512 + 256 * group + 8 * j + 2 * (lane % 4)) =
          make_float2(sums[4 * j + 2 * r], sums[4 * j + 2 * r + 1]);
#endif
}

/// to[k, :] = the parts of key k, in order.
template <class L>
__global__ void __launch_bounds__(128)
    attention_dkey_sum_kernel(const float* sums, int parts, std::int64_t padded,
                              matrix_view<bf16, space::device> to) {
  wait_for_previous_kernels();
  const std::int64_t k = blockIdx.x;
  const int c = static_cast<int>(threadIdx.x) * 4;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int i = 0; i < parts; ++i) {
    const float4 v = *reinterpret_cast<const float4*>(sums + (i * padded + k) * 512 + c);
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  bf16* const row = &to(k, c);
  row[0] = narrowed<bf16>(sum.x), row[1] = narrowed<bf16>(sum.y);
  row[2] = narrowed<bf16>(sum.z), row[3] = narrowed<bf16>(sum.w);
}

/// dq, and with sums in any order the gradients of keys, in one pass over the queries.
template <class L>
void launch_attention_dq_sm90(const exec::cuda& p, basic_workspace<space::device>& w,
                              const bf16_attention::inputs& in, const matrix_view<L, space::device>& lse,
                              const tensor_view<const bf16, space::device>& do_, const float* delta,
                              const bf16_attention::gradients& g, bool with_keys) {
  constexpr const char* where = "sparse_attention";
  const dim3 blocks(static_cast<unsigned>(in.q.extent[0] * (in.q.extent[1] / 64)));
  constexpr std::size_t shared = sizeof(attention_dq_memory) + 1024;
  if (!with_keys) {
    if (g.dq.data)
      p.launch(where, attention_dq_sm90_kernel<L, false>, blocks, 384, shared, in, lse, do_, delta, g.dq,
               attention_key_sums{});
    return;
  }
  const workspace_scope scope(w);
  const std::int64_t locals = g.dlocal.data ? g.dlocal.extent[0] : 0,
                     entries = g.dcompressed.data ? g.dcompressed.extent[0] : 0;
  const auto sums = take<float>(w, locals + entries, 512);
  clear(p, where, sums);
  p.launch(
      where, attention_dq_sm90_kernel<L, true>, blocks, 512, shared, in, lse, do_, delta, g.dq,
      attention_key_sums{locals > 0 ? sums.data : nullptr, entries > 0 ? sums.data + locals * 512 : nullptr});
  const auto round = [&](const float* from, const matrix_view<bf16, space::device>& to) {
    p.launch(where, attention_dkey_sum_kernel<L>, dim3(static_cast<unsigned>(to.extent[0])), 128, 0, from, 1,
             to.extent[0], to);
  };
  if (locals > 0) round(sums.data, g.dlocal);
  if (entries > 0) round(sums.data + locals * 512, g.dcompressed);
}

/// Whether the kernels here can do it, with sums in L.
template <class L>
bool attention_backward_fits_sm90(const exec::cuda& p, const bf16_attention::inputs& in,
                                  const tensor_view<const bf16, space::device>& do_,
                                  const bf16_attention::gradients& g) {
  return in.q.extent[2] == 512 && in.q.extent[1] % 64 == 0 && in.q.extent[0] > 0 &&
         all_vectorisable(in.q, in.local, do_) && (!in.compressed.data || vectorisable(in.compressed)) &&
         (!g.dq.data || vectorisable(g.dq)) && has_sm90a_code(p, attention_dq_sm90_kernel<L, false>);
}

/// Queues dq, dlocal and dcompressed, those that are wanted; `bits` say who selected which entry.
template <class L>
void launch_attention_backward_sm90(const exec::cuda& p, basic_workspace<space::device>& w,
                                    const bf16_attention::inputs& in,
                                    const matrix_view<L, space::device>& lse,
                                    const tensor_view<const bf16, space::device>& do_, const float* delta,
                                    const unsigned* bits, std::int64_t words,
                                    const bf16_attention::gradients& g) {
  launch_attention_dq_sm90(p, w, in, lse, do_, delta, g, false);
  const std::int64_t rows = in.q.extent[0];
  const auto keys = [&](const matrix_view<const bf16, space::device>& from,
                        const matrix_view<bf16, space::device>& to, bool local) {
    if (!to.data || to.extent[0] == 0) return;
    const workspace_scope scope(w);
    const std::int64_t blocks = ceil_div(to.extent[0], 64);
    attention_seen seen{from.data, from.stride[0], to.extent[0], local, local ? nullptr : bits, words,
                        0,         nullptr};
    // Parts depend on the extents alone, so sums have a fixed order.
    seen.parts = static_cast<int>(std::clamp<std::int64_t>(
        ceil_div(local ? std::min(rows, in.window + 64) : rows, 128), 1, local ? 4 : 16));
    seen.sums = take<float>(w, seen.parts * blocks * 64, 512).data;
    p.launch("sparse_attention", attention_dkey_sm90_kernel<L>,
             dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(seen.parts)), 384,
             sizeof(attention_dkey_memory) + 1024, in, lse, do_, delta, seen);
    p.launch("sparse_attention", attention_dkey_sum_kernel<L>, dim3(static_cast<unsigned>(to.extent[0])), 128,
             0, seen.sums, seen.parts, blocks * 64, to);
  };
  keys(in.local, g.dlocal, true);
  keys(in.compressed, g.dcompressed, false);
}

}  // namespace dsv4::detail
