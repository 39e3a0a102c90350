// SPDX-License-Identifier: Apache-2.0
/// Copies of consecutive rows in and out of rings on the GPU.
#pragma once

#include <dsv4/ops/copy_rows.hpp>
#include <dsv4/ops/cuda/common.cuh>

namespace dsv4 {

namespace detail {
template <class T, int N>
__global__ void __launch_bounds__(256)
    copy_rows_kernel(matrix_view<const T, space::device> source, std::int64_t source_first,
                     std::int64_t destination_first, std::int64_t count,
                     matrix_view<T, space::device> destination) {
  using P = pack<T, N>;
  const std::int64_t packs = source.extent[1] / N;
  for (std::int64_t i = global_thread(); i < count * packs; i += global_threads()) {
    const std::int64_t r = i / packs, c = i % packs * N;
    const T* from = &source((source_first + r) % source.extent[0], c);
    *reinterpret_cast<P*>(&destination((destination_first + r) % destination.extent[0], c)) =
        *reinterpret_cast<const P*>(from);
  }
}
}  // namespace detail

template <class T>
struct kernel<copy_rows<T, space::device>, exec::cuda> {
  using op = copy_rows<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    constexpr int n = detail::vector_width<T>;
    const std::int64_t elements = in.count * in.source.extent[1];
    const auto run = [&](auto kernel, int width) {
      p.launch("copy_rows", kernel, detail::loop_grid(p, elements / width, 256), 256, 0, in.source,
               in.source_first, in.destination_first, in.count, out.destination);
    };
    if (detail::all_vectorisable(in.source, out.destination))
      run(detail::copy_rows_kernel<T, n>, n);
    else
      run(detail::copy_rows_kernel<T, 1>, 1);
  }
};

}  // namespace dsv4
