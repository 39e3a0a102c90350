// SPDX-License-Identifier: Apache-2.0
/// Threaded matrix products with narrow weights; of their rounding holds what gemm.hpp says.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/cpu/stored_kernels.hpp>
#if !DSV4_COMPILED_KERNELS
#include <dsv4/ops/cpu/stored_dispatch.hpp>
#endif

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace dsv4::detail {

/// decode_rows by all threads.
template <class T, class X>
void decode_rows(const exec::cpu& p, const storage_matrix<const X>& x, T* to) {
  const std::int64_t k = x.extent[1];
  p.parallel_for(x.extent[0], 1 + 32768 / (k + 1), [&](std::int64_t begin, std::int64_t end) {
    decode_rows<T, X>(x.rows(begin, end - begin), to + begin * k);
  });
}

/// A matrix as T, decoded when it is not T already.
template <class T>
struct decoded_matrix {
  std::unique_ptr<T[]> storage;
  const T* data;
  std::int64_t stride;
};

template <class T, class X>
decoded_matrix<T> decode_matrix(const exec::cpu& p, const storage_matrix<const X>& x) {
  if constexpr (std::is_same_v<T, X>) {
    return {nullptr, x.data, x.stride[0]};
  } else {
    const std::int64_t n = x.extent[0], k = x.extent[1];
    std::unique_ptr<T[]> storage(new T[static_cast<std::size_t>(n * k)]);
    T* const to = storage.get();
    decode_rows<T, X>(p, x, to);
    return {std::move(storage), to, k};
  }
}

/// One product y[rows, o] = x[rows, k] w[o, k]^T of several that share o and k.
template <class T, class W>
struct stored_problem {
  const T* x;
  std::int64_t ldx, rows;
  storage_matrix<const W> w;
  T* y;
  std::int64_t ldy;
};

/// Computes `count` products, problem(i) describing each.
template <class T, class W, class Problem>
void stored_gemm_nt(const exec::cpu& p, std::int64_t count, std::int64_t o, std::int64_t k,
                    const Problem& problem) {
  const auto& kernels = best_stored_kernels<T, W>();
  for_each_block(
      p, count, o, k, [&](std::int64_t i) { return problem(i).rows; },
      [&](std::int64_t i, std::int64_t n0, std::int64_t n, std::int64_t o0, std::int64_t width) {
        const stored_problem<T, W> g = problem(i);
        // Kept between calls: fresh memory of this size costs page faults every time.
        thread_local buffer<T> scratch(stored_scratch<T>);
        kernels.product(g.x + n0 * g.ldx, g.ldx, n, g.w.rows(o0, width), scratch.data(),
                        g.y + n0 * g.ldy + o0, g.ldy);
      });
}

}  // namespace dsv4::detail
