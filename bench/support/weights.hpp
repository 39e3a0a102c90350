// SPDX-License-Identifier: Apache-2.0
/// The weights of one layer, for the benchmarks of blocks: in float at the small sizes, in the released
/// formats at those of V4-Flash and V4-Pro.
#pragma once

#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <memory>
#include <string>
#include <support/fixtures.hpp>
#include <type_traits>
#include <vector>

namespace dsv4::bench {

/// What a size of `sizes` is measured in.
template <model_config C>
inline constexpr numerics_config formats_of =
    C.hidden_size > 1024 ? numerics::v4_released : numerics::float32;

/// Random weights. Routed experts that are stored narrow share 640 MB, far more than the caches hold: V4-Pro
/// has 13 GB of them in each layer.
template <model_config C, numerics_config Q>
class random_weights {
 public:
  random_weights() {
    for_each_parameter<C>(store_.views(), [&](const parameter_info& info, auto& v) { fill(info, v); });
  }
  const layer_parameters<float, Q>& layer() const { return store_.views().layers.front(); }

  /// Bytes of a weight matrix as it is stored.
  template <class M>
  static std::int64_t bytes(const M& m) {
    if constexpr (requires { typename M::format; })
      return M::format::bytes(m.extent[0], m.extent[1]);
    else
      return m.size() * static_cast<std::int64_t>(sizeof(typename M::value_type));
  }

 private:
  static constexpr std::int64_t pool_bytes = 640'000'000;

  template <class U, int R>
  requires(!std::is_const_v<U>) void fill(const parameter_info&, view<U, R>& v) {
    if constexpr (std::is_same_v<U, float>)
      for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = next() * 0.03f;
  }
  template <int R>
  void fill(const parameter_info& info, view<const bf16, R>& v) {
    std::int64_t count = 1;
    for (int axis = R - 1; axis >= 0; --axis) {
      v.extent[axis] = info.shape[static_cast<std::size_t>(axis)];
      v.stride[axis] = count;
      count *= v.extent[axis];
    }
    bf16* data = store_.template allocate<bf16>(count);
    for (std::int64_t i = 0; i < count; ++i) data[i] = bf16(next() * 0.03f);
    v.data = data;
  }
  template <class F>
  void fill(const parameter_info& info, block_scaled_matrix<const F>& m) {
    m = matrix<F>(info.shape[0], info.shape[1]);
  }
  template <class F>
  void fill(const parameter_info& info, block_scaled_stack<const F>& stack) {
    const std::int64_t n = info.shape[0], rows = info.shape[1], columns = info.shape[2];
    auto matrices = std::make_shared<std::vector<block_scaled_matrix<const F>>>();
    if (info.name.find('*') == std::string::npos) {
      const auto whole = matrix<F>(n * rows, columns);
      for (std::int64_t i = 0; i < n; ++i) matrices->push_back(whole.rows(i * rows, rows));
    } else {
      const std::int64_t distinct = std::clamp<std::int64_t>(pool_bytes / 3 / F::bytes(rows, columns), 1, n);
      for (std::int64_t i = 0; i < n; ++i)
        matrices->push_back(i < distinct ? matrix<F>(rows, columns)
                                         : (*matrices)[static_cast<std::size_t>(i % distinct)]);
    }
    stack.matrices = matrices->data();
    std::copy_n(info.shape.data(), 3, stack.extent);
    store_.keep(std::move(matrices));
  }
  template <class F>
  block_scaled_matrix<const F> matrix(std::int64_t rows, std::int64_t columns) {
    const std::int64_t count = rows * F::row_bytes(columns),
                       scales = F::scale_rows(rows) * F::scale_columns(columns);
    std::uint8_t* codes = store_.template allocate<std::uint8_t>(count);
    e8m0* scale = store_.template allocate<e8m0>(scales);
    for (std::int64_t i = 0; i < count; ++i) codes[i] = static_cast<std::uint8_t>(bits() >> 24 & 0xBF);
    std::fill_n(scale, scales, e8m0::from_bits(121));  // 2^-6
    return {codes, scale, rows, columns};
  }

  std::uint32_t bits() { return state_ = state_ * 1664525u + 1013904223u; }
  float next() { return static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f; }

  std::uint32_t state_ = 1;
  parameter_store<C, float, Q> store_;
};

/// Registers body.operator()<C>(state) at the sizes that are trained in float.
template <class Body>
bool at_float_sizes(const std::string& name, std::initializer_list<std::int64_t> rows, const Body& body) {
  at_compiled_size<v4_nano>("nano", name, rows, body);
  at_compiled_size<v4_bench>("100m", name, rows, body);
  return true;
}

/// The same at all sizes.
template <class Body>
bool at_every_compiled_size(const std::string& name, std::initializer_list<std::int64_t> rows,
                            const Body& body) {
  at_float_sizes(name, rows, body);
  at_compiled_size<v4_flash>("flash", name, rows, body);
  at_compiled_size<v4_pro>("pro", name, rows, body);
  return true;
}

}  // namespace dsv4::bench
