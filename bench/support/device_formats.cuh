// SPDX-License-Identifier: Apache-2.0
/// Random matrices on the device in the formats of released weights.
#pragma once

#include <dsv4/ops/cuda/quantise.cuh>

#include <cmath>
#include <support/device.cuh>
#include <vector>

namespace dsv4::bench {

/// Random numbers of variance 1 / columns, as format F rounds them.
template <class F>
void fill_random(const block_scaled_matrix<F, D>& to) {
  const auto wide = random_weight(to.extent[0], to.extent[1]);
  quantise<F, bf16, D>::forward(policy(), {wide}, {to});
  policy().synchronise();
}

/// Random matrices and stacks of format F, which live as long as this.
template <class F>
class random_matrices {
 public:
  block_scaled_matrix<const F, D> take(std::int64_t rows, std::int64_t columns) {
    codes_.emplace_back(rows * F::row_bytes(columns));
    scales_.emplace_back(F::scale_rows(rows) * F::scale_columns(columns));
    const block_scaled_matrix<F, D> m(codes_.back().data(), scales_.back().data(), rows, columns);
    fill_random(m);
    return m;
  }
  block_scaled_stack<const F, D> take(std::int64_t count, std::int64_t rows, std::int64_t columns) {
    buffer<block_scaled_matrix<const F, D>> table(count);
    for (auto& m : table) m = take(rows, columns);
    tables_.push_back(to_device(policy().stream(), table));
    block_scaled_stack<const F, D> stack;
    stack.matrices = tables_.back().data();
    stack.extent[0] = count, stack.extent[1] = rows, stack.extent[2] = columns;
    return stack;
  }

 private:
  std::vector<device_buffer<std::uint8_t>> codes_;
  std::vector<device_buffer<e8m0>> scales_;
  std::vector<device_buffer<block_scaled_matrix<const F, D>>> tables_;
};

}  // namespace dsv4::bench
