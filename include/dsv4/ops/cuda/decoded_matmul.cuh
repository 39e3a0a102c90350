// SPDX-License-Identifier: Apache-2.0
/// Products of many bf16 rows with block-scaled weights on the GPU: these are decoded once, to scratch
/// memory, for cuBLASLt, where our own kernel would decode them again for every 128 rows.
#pragma once

#include <dsv4/exec/cuda_matmul.cuh>
#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/decode.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dsv4::detail {

/// out(g, r, c) = weight(group + g, row + r, column + c), in pieces of 16 bytes of codes.
template <class WView>
__global__ void __launch_bounds__(256)
    decode_kernel(WView weight, std::int64_t group, std::int64_t row, std::int64_t column,
                  tensor_view<bf16, space::device> out) {
  wait_for_previous_kernels();
  using F = typename WView::format;
  constexpr int n = codes_per_16<F>;
  const auto across = static_cast<unsigned>(out.extent[2] / n), down = static_cast<unsigned>(out.extent[1]),
             all = across * down * static_cast<unsigned>(out.extent[0]);
  for (auto i = static_cast<unsigned>(global_thread()); i < all;
       i += static_cast<unsigned>(global_threads())) {
    const unsigned piece = i % across, r = i / across % down, g = i / across / down;
    const auto m = matrix_of(weight, group + g);
    const std::int64_t from = column + piece * n;
    std::uint32_t pairs[n / 2];
    decode_16<F>(__ldg(reinterpret_cast<const uint4*>(m.row(row + r) + F::row_bytes(from))),
                 m.row_scales(row + r)[from / F::block_columns], pairs);
    auto* const to = reinterpret_cast<uint4*>(&out(g, r, piece * n));
#pragma unroll
    for (int j = 0; j < n / 8; ++j)
      to[j] = make_uint4(pairs[4 * j], pairs[4 * j + 1], pairs[4 * j + 2], pairs[4 * j + 3]);
  }
}

/// Queues `m`, products of `X` into `T` whose weight is the matrix or stack `weight`; false, and y untouched,
/// where rows are too few for that to pay, or cuBLASLt or the decoder does not take these operands. As many
/// columns of y at a time as half of the scratch memory has room for.
template <class T, class X, class WView>
bool decoded_matmul(const exec::cuda& p, std::string_view where, const exec::cuda_matmul::problem& m,
                    const WView& weight) {
  constexpr std::int64_t fewest_rows = 512, step = 256;
  const std::size_t kept = p.scratch_bytes() / 2;
  const std::int64_t room = static_cast<std::int64_t>(kept / sizeof(bf16)) - 128;
  if (m.rows < fewest_rows || m.inner == 0 || !loadable_16(weight)) return false;
  const bool whole = m.columns * m.inner <= room;
  const std::int64_t columns = whole ? m.columns : room / m.inner / step * step;
  if (columns <= 0) return false;
  const std::int64_t groups = whole ? std::min(m.batch, room / (m.columns * m.inner)) : 1;
  const auto end = reinterpret_cast<std::uintptr_t>(p.scratch() + p.scratch_bytes());
  auto* const decoded = reinterpret_cast<bf16*>((end - kept + 255) / 256 * 256);
  for (std::int64_t g = 0; g < m.batch; g += groups)
    for (std::int64_t c = 0; c < m.columns; c += columns) {
      auto part = m;
      part.columns = std::min(columns, m.columns - c), part.batch = std::min(groups, m.batch - g);
      const tensor_view<bf16, space::device> out(decoded, part.batch,
                                                 m.weight_transposed ? m.inner : part.columns,
                                                 m.weight_transposed ? part.columns : m.inner);
      part.x = static_cast<const X*>(m.x) + g * m.x_batch_stride;
      part.y = static_cast<T*>(m.y) + g * m.y_batch_stride + c;
      part.weight = decoded, part.weight_stride = out.stride[1], part.weight_batch_stride = out.stride[0];
      p.launch(where, decode_kernel<WView>,
               loop_grid(p, out.size() / codes_per_16<typename WView::format>, 256), 256, 0, weight, g,
               m.weight_transposed ? 0 : c, m.weight_transposed ? c : 0, out);
      if (p.matmul(where, part, kept)) continue;
      if (g == 0 && c == 0) return false;
      check_cuda(CUBLAS_STATUS_NOT_SUPPORTED, where);
    }
  return true;
}

}  // namespace dsv4::detail
