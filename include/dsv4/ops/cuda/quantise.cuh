// SPDX-License-Identifier: Apache-2.0
/// To and from block-scaled formats, and to bf16, on the GPU; the same codes as on the host, bit for bit.
#pragma once

#include <dsv4/numeric/fp4.hpp>
#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/quantise.hpp>

namespace dsv4 {

namespace detail {
/// F::scale of a block whose largest magnitude is `amax` (NaN when it has one), in integers.
template <class F>
__device__ e8m0 device_scale(double amax) {
  if (!(amax < HUGE_VAL)) return e8m0::from_bits(0xFF);
  constexpr double smallest = F::smallest_amax, largest = static_cast<double>(F::element::max());
  amax = amax > smallest ? amax : smallest;
  if constexpr (F::rule == scale_rule::ceil) {
    return e8m0::ceil(amax / largest);
  } else {
    constexpr int exponent = e8m0::floor(largest).exponent();
    const int bits = e8m0::floor(amax).bits - exponent;
    return e8m0::from_bits(static_cast<std::uint8_t>(bits < 0 ? 0 : bits));
  }
}

/// value / scale; the quotient is exact, or too small for any element.
template <class A>
__device__ __forceinline__ A unscaled(A value, e8m0 scale) {
  return value / static_cast<A>(static_cast<float>(scale));
}

/// What absolute values of a block become when their largest is sought: NaN wins, and stays.
template <class A>
__device__ __forceinline__ A larger_magnitude(A a, A b) {
  return a != a ? a : b != b ? b : b > a ? b : a;
}
template <class A>
__device__ __forceinline__ A warp_largest(A value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    value = larger_magnitude(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

/// Calls visit(scale, row, column, value, next value) for the elements of block (block_row, block_column), at
/// every other column for formats with two elements per byte. One warp per block.
template <class F, class T, class Scale, class Visit>
__device__ void for_block(const matrix_view<const T, space::device>& x, std::int64_t block_row,
                          std::int64_t block_column, const Scale& scale_is, const Visit& visit) {
  using A = accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t r0 = block_row * F::block_rows, c0 = block_column * F::block_columns;
  const std::int64_t r1 = min(x.extent[0], r0 + F::block_rows), c1 = min(x.extent[1], c0 + F::block_columns);
  A amax = 0;
  for (std::int64_t r = r0; r < r1; ++r)
    for (std::int64_t c = c0 + lane; c < c1; c += 32) {
      const A v = widened<A>(x(r, c));
      amax = larger_magnitude(amax, v < 0 ? -v : v);
    }
  const e8m0 scale = device_scale<F>(static_cast<double>(warp_largest(amax)));
  if (lane == 0) scale_is(scale);
  // Two-per-byte elements: both of a byte belong to one thread.
  constexpr int step = F::packed ? 2 : 1;
  for (std::int64_t r = r0; r < r1; ++r)
    for (std::int64_t c = c0 + step * lane; c < c1; c += 32 * step)
      visit(scale, r, c, widened<A>(x(r, c)), step == 2 && c + 1 < c1 ? widened<A>(x(r, c + 1)) : A(0));
}

template <class F, class T>
__global__ void __launch_bounds__(128)
    quantise_kernel(matrix_view<const T, space::device> x, block_scaled_matrix<F, space::device> q) {
  wait_for_previous_kernels();
  using E = typename F::element;
  const std::int64_t columns = F::scale_columns(x.extent[1]), count = F::scale_rows(x.extent[0]) * columns;
  for (std::int64_t b = std::int64_t{blockIdx.x} * 4 + threadIdx.x / 32; b < count;
       b += std::int64_t{gridDim.x} * 4) {
    const std::int64_t i = b / columns, j = b % columns;
    for_block<F>(
        x, i, j, [&](e8m0 s) { q.scales[i * q.scale_row_stride + j] = s; },
        [&](e8m0 s, std::int64_t r, std::int64_t c, auto v, auto next) {
          // Bytes are written whole; the unused half of a row's last one is 0.
          if constexpr (F::packed)
            q.row(r)[c / 2] = e2m1x2(E(unscaled(v, s)), E(unscaled(next, s))).bits;
          else
            q.row(r)[c] = E(unscaled(v, s)).bits;
        });
  }
}

template <class F, class T>
__global__ void __launch_bounds__(128) round_trip_kernel(matrix_view<T, space::device> x) {
  wait_for_previous_kernels();
  using E = typename F::element;
  using A = accumulator<T>;
  const std::int64_t columns = F::scale_columns(x.extent[1]), count = F::scale_rows(x.extent[0]) * columns;
  for (std::int64_t b = std::int64_t{blockIdx.x} * 4 + threadIdx.x / 32; b < count;
       b += std::int64_t{gridDim.x} * 4)
    for_block<F>(
        matrix_view<const T, space::device>(x), b / columns, b % columns, [](e8m0) {},
        [&](e8m0 s, std::int64_t r, std::int64_t c, auto v, auto next) {
          const auto stored = [&](auto value) {
            return narrowed<T>(static_cast<A>(static_cast<float>(E(unscaled(value, s)))) *
                               static_cast<A>(static_cast<float>(s)));
          };
          x(r, c) = stored(v);
          if (F::packed && c + 1 < x.extent[1]) x(r, c + 1) = stored(next);
        });
}

/// Blocks that are parts of rows, from dense vectors: a thread holds `N` elements, and the threads of a block
/// agree on the largest. Every element is read once.
template <class F, class T, int N>
__global__ void __launch_bounds__(128)
    quantise_rows_kernel(matrix_view<const T, space::device> x, block_scaled_matrix<F, space::device> q) {
  wait_for_previous_kernels();
  using E = typename F::element;
  using A = accumulator<T>;
  constexpr int sharers = F::block_columns / N;
  static_assert(sharers <= 32 && 32 % sharers == 0 && N % 4 == 0);
  const std::int64_t per_row = x.extent[1] / N, count = x.extent[0] * per_row;
  // Whole warps go round, so that all threads of a block are there.
  for (std::int64_t base = std::int64_t{blockIdx.x} * 128; base < count;
       base += std::int64_t{gridDim.x} * 128) {
    const std::int64_t i = base + threadIdx.x, r = i / per_row, c = i % per_row * N;
    const bool inside = i < count;
    pack<T, N> v{};
    if (inside) v = *reinterpret_cast<const pack<T, N>*>(&x(r, c));
    A amax = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A a = widened<A>(v.value[j]);
      amax = larger_magnitude(amax, a < 0 ? -a : a);
    }
#pragma unroll
    for (int step = sharers / 2; step > 0; step /= 2)
      amax = larger_magnitude(amax, __shfl_xor_sync(0xffffffffu, amax, step));
    if (!inside) continue;
    const e8m0 s = device_scale<F>(static_cast<double>(amax));
    if (c % F::block_columns == 0) q.row_scales(r)[c / F::block_columns] = s;
    pack<std::uint8_t, F::packed ? N / 2 : N> codes;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      const E a = E(unscaled(widened<A>(v.value[j]), s)), b = E(unscaled(widened<A>(v.value[j + 1]), s));
      if constexpr (F::packed)
        codes.value[j / 2] = e2m1x2(a, b).bits;
      else
        codes.value[j] = a.bits, codes.value[j + 1] = b.bits;
    }
    *reinterpret_cast<decltype(codes)*>(q.row(r) + F::row_bytes(c)) = codes;
  }
}

template <class F, class T>
__global__ void __launch_bounds__(256)
    dequantise_kernel(block_scaled_matrix<const F, space::device> q, matrix_view<T, space::device> x) {
  wait_for_previous_kernels();
  const std::int64_t width = x.extent[1];
  for (std::int64_t i = global_thread(); i < x.extent[0] * width; i += global_threads())
    x(i / width, i % width) = narrowed<T>(q(i / width, i % width));
}

template <class T, class Y>
__global__ void __launch_bounds__(256)
    round_to_bf16_kernel(vector_view<const T, space::device> x, vector_view<Y, space::device> y) {
  wait_for_previous_kernels();
  for (std::int64_t i = global_thread(); i < x.extent[0]; i += global_threads())
    y(i) = as_bf16_holds<Y>(x(i));
}
}  // namespace detail

template <class F, class T>
struct kernel<quantise<F, T, space::device>, exec::cuda> {
  using op = quantise<F, T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    if constexpr (F::block_rows == 1) {
      constexpr int n = detail::vector_width<T> < 4 ? 4 : detail::vector_width<T>;
      const auto& q = out.quantised;
      if (in.x.extent[1] % F::block_columns == 0 && in.x.stride[0] % n == 0 && q.row_stride % n == 0 &&
          reinterpret_cast<std::uintptr_t>(in.x.data) % (n * sizeof(T)) == 0 &&
          reinterpret_cast<std::uintptr_t>(q.codes) % n == 0) {
        p.launch("quantise", detail::quantise_rows_kernel<F, T, n>,
                 detail::loop_grid(p, in.x.size() / n, 128), 128, 0, in.x, q);
        return;
      }
    }
    const std::int64_t blocks = F::scale_rows(in.x.extent[0]) * F::scale_columns(in.x.extent[1]);
    p.launch("quantise", detail::quantise_kernel<F, T>, detail::loop_grid(p, 32 * blocks, 128), 128, 0, in.x,
             out.quantised);
  }
};

template <class F, class T>
struct kernel<dequantise<F, T, space::device>, exec::cuda> {
  using op = dequantise<F, T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("dequantise", detail::dequantise_kernel<F, T>, detail::loop_grid(p, out.x.size(), 256), 256, 0,
             in.quantised, out.x);
  }
};

template <class F, class T>
struct kernel<round_trip<F, T, space::device>, exec::cuda> {
  using op = round_trip<F, T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs&, const typename op::outputs& out) {
    const std::int64_t blocks = F::scale_rows(out.x.extent[0]) * F::scale_columns(out.x.extent[1]);
    p.launch("round_trip", detail::round_trip_kernel<F, T>, detail::loop_grid(p, 32 * blocks, 128), 128, 0,
             out.x);
  }
};

template <class T, class Y>
struct kernel<round_to_bf16<T, Y, space::device>, exec::cuda> {
  using op = round_to_bf16<T, Y, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    p.launch("round_to_bf16", detail::round_to_bf16_kernel<T, Y>, detail::loop_grid(p, in.x.extent[0], 256),
             256, 0, in.x, out.y);
  }
};

}  // namespace dsv4
