// SPDX-License-Identifier: Apache-2.0
/// The weights of one layer on the device, for the benchmarks of blocks and models.
#pragma once

#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <support/device_formats.cuh>

namespace dsv4::bench {

/// `C` with a single layer of that kind, and no more experts than a token needs: for attention alone.
template <model_config C, attention_kind K>
inline constexpr model_config attention_layer = [] {
  model_config c = one_layer<C, K>;
  c.moe.n_routed_experts = c.moe.num_experts_per_tok;
  return c;
}();

/// Random weights in storage Q, bf16 without: matrices of variance 1 / columns, vectors in [-1, 1).
template <model_config C, numerics_config Q>
class random_weights {
 public:
  random_weights() {
    for_each_parameter<C>(store_.views(), [&](const parameter_info& info, auto& v) { fill(info, v); });
    policy().synchronise();
  }
  const auto& views() const { return store_.views(); }
  const layer_parameters<bf16, Q, D>& layer() const { return store_.views().layers.front(); }

 private:
  template <class T, int R>
  static void fill(const parameter_info&, const view<T, R, D>& v) {
    const double columns = double(v.extent[R - 1]);
    fill_random(v.data, v.size(), R == 1 ? 1.0f : static_cast<float>(std::sqrt(3.0 / columns)));
  }
  template <class F>
  void fill(const parameter_info& info, block_scaled_matrix<const F, D>& m) {
    m = narrow<F>(info.shape[0], info.shape[1]);
  }
  /// Experts are matrices of their own, output groups are parts of one.
  template <class F>
  void fill(const parameter_info& info, block_scaled_stack<const F, D>& stack) {
    using matrix = block_scaled_matrix<const F, D>;
    const std::int64_t count = info.shape[0], rows = info.shape[1], columns = info.shape[2];
    buffer<matrix> table(count);
    if (info.name.find('*') != std::string::npos) {
      for (matrix& m : table) m = narrow<F>(rows, columns);
    } else {
      const matrix whole = narrow<F>(count * rows, columns);
      for (std::int64_t i = 0; i < count; ++i) table[i] = whole.rows(i * rows, rows);
    }
    matrix* const on_device = store_.template allocate<matrix>(count);
    copy_elements(policy().stream(), table.data(), on_device, count);
    policy().synchronise();
    stack.matrices = on_device;
    std::copy_n(info.shape.data(), 3, stack.extent);
  }
  template <class F>
  block_scaled_matrix<const F, D> narrow(std::int64_t rows, std::int64_t columns) {
    const block_scaled_matrix<F, D> m(
        store_.template allocate<std::uint8_t>(rows * F::row_bytes(columns)),
        store_.template allocate<e8m0>(F::scale_rows(rows) * F::scale_columns(columns)), rows, columns);
    fill_random(m);
    return m;
  }

  parameter_store<C, bf16, Q, D> store_;
};

}  // namespace dsv4::bench
