// SPDX-License-Identifier: Apache-2.0
/// Matrix products with few rows on the GPU: the time is that of reading the weights, so each is read once,
/// by the warp that needs it, and the matrix units, which have little else to do, take the arithmetic.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace dsv4::detail {

inline constexpr int gemv_warps = 8;  ///< per block
/// Columns per warp and blocks per multiprocessor, as measured: a row alone wants many loads on their way,
/// several rows want each decoded weight to serve more products.
template <int Rows>
inline constexpr int gemv_outputs = Rows == 1 ? 2 : 4;
template <int Rows>
inline constexpr int gemv_blocks = Rows == 1 ? 4 : 2;

/// How 16 bytes of storage `E` become pairs of bf16 for the matrix units, eight elements at a time. In which
/// order a sum takes its terms is free, so pairs are made of elements that are cheap to bring together:
/// `first(i)` and `second(i)` are the elements of pair i.
template <class E>
struct loose_pairs;

template <>
struct loose_pairs<bf16> {
  static constexpr int count = 8;
  __device__ static constexpr int first(int i) { return 2 * i; }
  __device__ static constexpr int second(int i) { return 2 * i + 1; }
  struct piece {
    uint4 bits;
  };
  struct scale {
    __device__ scale(const piece&) {}
    __device__ bool in_two_steps() const { return false; }
  };
  template <class M>
  __device__ static piece load(const M& m, std::int64_t r, int at) {
    return {__ldg(reinterpret_cast<const uint4*>(m.data + r * m.stride[0]) + at)};
  }
  __device__ static void decode(const piece& p, int, const scale&, bool, std::uint32_t (&out)[4]) {
    out[0] = p.bits.x, out[1] = p.bits.y, out[2] = p.bits.z, out[3] = p.bits.w;
  }
};

template <block_format F>
struct loose_pairs<F> {
  static constexpr int count = codes_per_16<F>;
  static_assert(F::block_columns % count == 0, "dsv4: 16 bytes of codes have one scale");
  __device__ static constexpr int first(int i) { return F::packed ? i : i % 2 + i / 2 * 4; }
  __device__ static constexpr int second(int i) { return first(i) + (F::packed ? 4 : 2); }
  struct piece {
    uint4 bits;
    e8m0 stored;
  };
  struct scale : pair_scale {
    __device__ scale(const piece& p) : pair_scale(F::packed ? 126 : 120, p.stored) {}
  };
  template <class M>
  __device__ static piece load(const M& m, std::int64_t r, int at) {
    return {__ldg(reinterpret_cast<const uint4*>(m.row(r)) + at),
            m.row_scales(r)[at * count / F::block_columns]};
  }
  /// Elements 8 part to 8 part + 7.
  __device__ static void decode(const piece& p, int part, const scale& s, bool in_two_steps,
                                std::uint32_t (&out)[4]) {
    const std::uint32_t word[4] = {p.bits.x, p.bits.y, p.bits.z, p.bits.w};
    if constexpr (F::packed) {
      const std::uint32_t w = word[part];  // code i in bits 4 i to 4 i + 3
      out[0] = (w << 12 & 0x80008000u) | (w << 6 & 0x01C001C0u);
      out[1] = (w << 8 & 0x80008000u) | (w << 2 & 0x01C001C0u);
      out[2] = (w << 4 & 0x80008000u) | (w >> 2 & 0x01C001C0u);
      out[3] = (w & 0x80008000u) | (w >> 6 & 0x01C001C0u);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t w = word[2 * part + half];
        out[2 * half] = (w << 8 & 0x80008000u) | (w << 4 & 0x07F007F0u);
        out[2 * half + 1] = (w & 0x80008000u) | (w >> 4 & 0x07F007F0u);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = multiply_pair(out[i], s.first);
    if (in_two_steps)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = multiply_pair(out[i], s.second);
  }
};

template <class V>
struct view_storage {
  using type = typename V::format;
};
template <class U, int R>
struct view_storage<view<U, R, space::device>> {
  using type = std::remove_const_t<U>;
};

/// Elements [16-byte piece `piece`] of row r, as pairs of bf16 in their order.
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

/// c += a b: 16 x 16 times 16 x 8, in the layout of mma.m16n8k16.
__device__ __forceinline__ void multiply_16x8(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                              std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                              std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Block (columns, slot, batch). With offsets a slot is a row, whose block runs the up to `Rows` rows of its
/// group that begin with it, or, where there are fewer groups than rows, a group, whose rows the block runs
/// `Rows` at a time. Without offsets a slot is `Rows` rows, and blockIdx.z the group.
///
/// A warp reads 512 bytes of a column's weights at once, a piece per lane. Lane 4 g + l is row g, and for a
/// second column row g + 8, of the matrix unit's first operand, and its piece of x column g of the second:
/// the diagonal of the product is what each four lanes' pieces sum up to, and nobody needs the rest.
template <class T, class XView, class WView, int Rows>
__global__ void __launch_bounds__(32 * gemv_warps, gemv_blocks<Rows>)
    gemv_kernel(gemm_problem<T, XView, WView> p, bool slots_are_groups) {
  extern __shared__ __align__(16) unsigned char memory[];
  uint4* const shared_x = reinterpret_cast<uint4*>(memory);  // (Rows, parts of a piece, pieces)
  const std::int64_t slot = blockIdx.y;
  std::int64_t begin = 0, end = 0;  // the rows of this block
  int group = static_cast<int>(blockIdx.z);
  if (!p.offsets) {
    begin = slot * Rows;
    end = min(p.y.extent[0], begin + Rows);
  } else if (slots_are_groups) {
    group = static_cast<int>(slot);
    begin = p.offsets[group], end = p.offsets[group + 1];
  } else {
    int low = 0, high = p.groups;  // the group of this row
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (p.offsets[middle] <= slot ? low : high) = middle;
    }
    group = low;
    if ((slot - p.offsets[group]) % Rows != 0) return;
    begin = slot, end = min(slot + Rows, p.offsets[group + 1]);
  }
  if (begin >= end) return;

  auto x = p.x;
  if constexpr (requires { x.stride; }) x.data += group * p.x_batch;
  const auto weight = p.weight_of(group);
  using W = loose_pairs<typename view_storage<std::remove_const_t<decltype(weight)>>::type>;
  using X = loose_pairs<typename view_storage<XView>::type>;
  constexpr int parts = W::count / 8, outputs = gemv_outputs<Rows>;
  const int inner = static_cast<int>(x.extent[1]), pieces = inner / W::count;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, l = lane % 4;
  const std::int64_t columns = p.y.extent[1],
                     first = (std::int64_t{blockIdx.x} * gemv_warps + threadIdx.x / 32) * outputs;
  const auto ask = [&](int at, typename W::piece(&to)[outputs]) {
#pragma unroll
    for (int o = 0; o < outputs; ++o)
      to[o] = W::load(weight, min(first + o, columns - 1), min(at, pieces - 1));
  };

  for (std::int64_t row = begin; row < end; row += Rows) {
    const int rows = static_cast<int>(min(end - row, std::int64_t{Rows}));
    typename W::piece next[outputs];
    ask(lane, next);  // on their way while x is brought
    if (row > begin) __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < Rows * (inner / X::count); i += 32 * gemv_warps) {
      const int r = i / (inner / X::count), at = i % (inner / X::count);
      std::uint32_t out[X::count / 2] = {};
      if (r < rows) load_piece(x, row + r, at, out);
#pragma unroll
      for (int j = 0; j < X::count / 8; ++j) {
        const int eighth = at * (X::count / 8) + j;
        std::uint32_t pair[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const auto half = [](int element) { return element % 2 == 0 ? 0x10u : 0x32u; };
          pair[k] = __byte_perm(out[4 * j + W::first(k) / 2], out[4 * j + W::second(k) / 2],
                                half(W::first(k)) | (half(W::second(k)) + 0x44u) << 8);
        }
        shared_x[(r * parts + eighth % parts) * pieces + eighth / parts] =
            make_uint4(pair[0], pair[1], pair[2], pair[3]);
      }
    }
    __syncthreads();

    float c[outputs / 2][Rows][4] = {};
    for (int base = 0; base < pieces; base += 32) {
      typename W::piece now[outputs];
#pragma unroll
      for (int o = 0; o < outputs; ++o) now[o] = next[o];
      if (base + 32 < pieces) ask(base + 32 + lane, next);
      const bool valid = base + lane < pieces;
#pragma unroll
      for (int pair = 0; pair < outputs / 2; ++pair) {
        const typename W::scale s0(now[2 * pair]), s1(now[2 * pair + 1]);
        const bool two = __any_sync(0xFFFFFFFFu, s0.in_two_steps() || s1.in_two_steps());
#pragma unroll
        for (int part = 0; part < parts; ++part) {
          std::uint32_t a0[4], a1[4];
          W::decode(now[2 * pair], part, s0, two, a0);
          W::decode(now[2 * pair + 1], part, s1, two, a1);
          if (!valid)  // another lane's piece, which may be NaN
#pragma unroll
            for (int i = 0; i < 4; ++i) a0[i] = a1[i] = 0;
#pragma unroll
          for (int r = 0; r < Rows; ++r) {
            const uint4 b = shared_x[(r * parts + part) * pieces + min(base + lane, pieces - 1)];
            multiply_16x8(c[pair][r], a0[0], a1[0], a0[1], a1[1], b.x, b.y);
            multiply_16x8(c[pair][r], a0[2], a1[2], a0[3], a1[3], b.z, b.w);
          }
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < outputs / 2; ++pair)
#pragma unroll
      for (int r = 0; r < Rows; ++r)
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          const float own = g % 2 == 0 ? c[pair][r][2 * second] : c[pair][r][2 * second + 1];
          const float all = warp_sum(l == g / 2 ? own : 0.0f);
          const std::int64_t column = first + 2 * pair + second;
          if (lane == 0 && r < rows && column < columns)
            p.y.data[group * p.y_batch + (row + r) * p.y.stride[0] + column] = narrowed<T>(all);
        }
  }
}

/// Queues the products where rows are few and these operands allow; false if not. Rows of a group share a
/// read of its weights four at a time; tiles have 64.
template <class T, class XView, class WView>
bool launch_gemv(const exec::cuda& p, std::string_view where, const gemm_problem<T, XView, WView>& problem) {
  const std::int64_t rows = problem.y.extent[0], inner = problem.x.extent[1],
                     most = problem.offsets ? std::max<std::int64_t>(16, 4 * problem.groups) : 16;
  if (rows > most || rows == 0 || inner == 0 || !loadable_16(problem.x) || !loadable_16(problem.weight))
    return false;
  const auto run = [&]<int Rows>(std::integral_constant<int, Rows>) {
    const std::size_t bytes = static_cast<std::size_t>(Rows * inner) * sizeof(bf16);
    if (bytes > p.device().shared_memory_per_block) return false;
    const bool by_group = problem.offsets && rows > problem.groups;
    const std::int64_t slots = !problem.offsets ? ceil_div(rows, Rows) : by_group ? problem.groups : rows;
    p.launch(where, gemv_kernel<T, XView, WView, Rows>,
             dim3(static_cast<unsigned>(ceil_div(problem.y.extent[1], gemv_warps * gemv_outputs<Rows>)),
                  static_cast<unsigned>(slots), static_cast<unsigned>(problem.offsets ? 1 : problem.groups)),
             32 * gemv_warps, bytes, problem, by_group);
    return true;
  };
  // With many groups their rows rarely meet.
  if (rows == 1 || (problem.offsets && rows <= problem.groups / 8))
    return run(std::integral_constant<int, 1>{});
  return run(std::integral_constant<int, 4>{});
}

}  // namespace dsv4::detail
