// SPDX-License-Identifier: Apache-2.0
/// Copies of consecutive rows in and out of rings on the GPU.
#pragma once

#include <dsv4/ops/copy_rows.hpp>
#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/reduce.cuh>

namespace dsv4 {

namespace detail {
template <class T, int N>
__global__ void __launch_bounds__(256)
    copy_rows_kernel(matrix_view<const T, space::device> source, std::int64_t source_first,
                     std::int64_t destination_first, std::int64_t count,
                     matrix_view<T, space::device> destination) {
  wait_for_previous_kernels();
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
    copy(p, in.source, in.source_first, in.destination_first, in.count, out.destination);
  }

  static void backward(const exec::cuda& p, basic_workspace<space::device>&, const typename op::inputs& in,
                       const typename op::upstream& up, const typename op::gradients& g) {
    detail::clear(p, "copy_rows", g.dsource);
    copy(p, up.dy, in.destination_first, in.source_first, in.count, g.dsource);
  }

 private:
  static void copy(const exec::cuda& p, const matrix_view<const T, space::device>& from,
                   std::int64_t from_first, std::int64_t to_first, std::int64_t count,
                   const matrix_view<T, space::device>& to) {
    constexpr int n = detail::vector_width<T>;
    const auto run = [&](auto kernel, int width) {
      p.launch("copy_rows", kernel, detail::loop_grid(p, count * from.extent[1] / width, 256), 256, 0, from,
               from_first, to_first, count, to);
    };
    if (detail::all_vectorisable(from, to))
      run(detail::copy_rows_kernel<T, n>, n);
    else
      run(detail::copy_rows_kernel<T, 1>, 1);
  }
};

}  // namespace dsv4
