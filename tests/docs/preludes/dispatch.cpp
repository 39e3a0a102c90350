// SPDX-License-Identifier: Apache-2.0
#include <dsv4/cpu.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

using namespace dsv4;

buffer<std::int32_t> ids(std::initializer_list<std::int32_t> list) {
  buffer<std::int32_t> b(static_cast<std::int64_t>(list.size()));
  std::copy(list.begin(), list.end(), b.begin());
  return b;
}
void check(vector_view<std::int64_t> found, std::initializer_list<std::int64_t> wanted) {
  if (!std::equal(wanted.begin(), wanted.end(), found.data, found.data + found.size())) std::exit(1);
}

int main() {
  buffer<float> in(3 * 4), weight(3 * 2), sorted(6 * 4), sorted_weight(6);
  buffer<std::int64_t> first(5), pair(6);
  const matrix_view<const float> x = in.as(3, 4), weights = weight.as(3, 2);
  const matrix_view<float> x_sorted = sorted.as(6, 4);
  const vector_view<float> weight_sorted = sorted_weight.as(6);
  const vector_view<std::int64_t> offsets = first.as(5), order = pair.as(6);
  // BLOCK
}
