// SPDX-License-Identifier: Apache-2.0
// Weights rounded on the GPU: byte by byte those that the reference policy rounds on the host.
#include "support/device.cuh"
#include "support/oracle.hpp"
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/ops/cuda/quantise.cuh>

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

/// The bytes of all weights by name, scales behind codes; every matrix of a stack has an entry of its own.
class contents {
 public:
  template <class U, int R, space S>
  void operator()(const parameter_info& info, const view<U, R, S>& v) {
    add(info.name, v.data, v.size());
  }
  template <class F, space S>
  void operator()(const parameter_info& info, const block_scaled_matrix<F, S>& m) {
    using format = std::remove_const_t<F>;
    add(info.name, m.codes, m.extent[0] * m.row_stride);
    add(info.name, m.scales, format::scale_rows(m.skipped_rows + m.extent[0]) * m.scale_row_stride);
    add(info.name, &m.skipped_rows, 1);
  }
  template <class F, space S>
  void operator()(const parameter_info& info, const block_scaled_stack<F, S>& stack) {
    buffer<block_scaled_matrix<F, S>> matrices(stack.extent[0]);
    copy_elements<block_scaled_matrix<F, S>>(gpu().stream(), stack.matrices, matrices.data(),
                                             stack.extent[0]);
    gpu().synchronise();
    for (const auto& m : matrices) (*this)(info, m);
  }

  struct weight {
    std::string name;
    std::vector<std::byte> bytes;
  };
  std::vector<weight> weights;

 private:
  template <class U>
  void add(const std::string& name, const U* data, std::int64_t count) {
    using V = std::remove_const_t<U>;
    buffer<V> copy(count);
    copy_elements<V>(gpu().stream(), data, copy.data(), count);
    gpu().synchronise();
    const auto bytes = std::as_bytes(std::span(copy.data(), static_cast<std::size_t>(count)));
    weights.push_back({name, {bytes.begin(), bytes.end()}});
  }
};

template <model_config C, class T, numerics_config Q, space S>
contents contents_of(const model_parameters<T, Q, S>& m) {
  auto views = m;
  contents all;
  for_each_parameter<C>(views, all);
  return all;
}

void check_same(const contents& a, const contents& b) {
  REQUIRE(a.weights.size() == b.weights.size());
  for (std::size_t i = 0; i < a.weights.size(); ++i) {
    INFO(a.weights[i].name << ", " << a.weights[i].bytes.size() << " bytes");
    CHECK(a.weights[i].name == b.weights[i].name);
    CHECK(a.weights[i].bytes == b.weights[i].bytes);
  }
}

/// Weights of very different sizes, whole rows of zeros, ties between two numbers of a format, and where
/// asked for some that are not finite.
template <model_config C, class T>
void make_wild(parameter_store<C, T>& store, bool finite) {
  initialise_by_name(store, 3);
  const auto all = store.reals();
  for (std::int64_t i = 0; i < all.extent[0]; ++i) {
    T& v = all(i);
    if (i / 400 % 5 == 1) v = 0;
    if (i / 100 % 7 == 2) v *= T(std::exp2(std::round(60 * noise(1, i / 100))));
    if (i % 13 == 5) v = T(bf16(static_cast<float>(v))) * T(1 + 0x1p-8);
    if (i % 1001 == 17) v = -v * 0;
    if (!finite && i % 4999 == 101) v = T(i % 2 == 0 ? double(INFINITY) : double(NAN));
  }
}

template <model_config C, class T, numerics_config Q>
void check() {
  for (const bool finite : {true, false}) {
    parameter_store<C, T> wide;
    make_wild(wide, finite);
    parameter_store<C, T, numerics::float32, D> on_device;
    upload_parameters(gpu(), wide, on_device);

    parameter_store<C, T, Q> want;
    quantise_parameters(exec::reference{}, wide, want);
    const contents expected = contents_of<C>(want.views());
    parameter_store<C, T, Q, D> got;
    quantise_parameters(gpu(), on_device, got);
    check_same(contents_of<C>(got.views()), expected);

    // The same memory again, after other weights.
    rounded_parameters<C, T, Q, D> again;
    parameter_store<C, T, numerics::float32, D> other;
    {
      parameter_store<C, T> start;
      initialise_by_name(start, 4);
      upload_parameters(gpu(), start, other);
    }
    again.round(gpu(), other);
    check_same(contents_of<C>(again.round(gpu(), on_device)), expected);
  }
}

}  // namespace

TEST_CASE("rounded on the GPU, weights have the host's bytes: odd shapes") {
  check<odd_case, float, numerics::v4_released>();
  check<odd_case, float, numerics::v4_released_base>();
}
TEST_CASE("rounded on the GPU, weights have the host's bytes: several blocks a row") {
  check<released_case, float, numerics::v4_released>();
  check<released_case, float, numerics::v4_released_base>();
  check<released_case, float, numerics::mxfp4_experts_only>();
  check<released_case, float, numerics::bf16>();
  check<v4_nano, float, numerics::v4_released>();
}
// Where a double is not finite, the payload of its norm's NaN is the machine's: float has them above.
TEST_CASE("rounded on the GPU, weights in double have the host's bytes") {
  parameter_store<released_case, double> wide;
  make_wild(wide, true);
  parameter_store<released_case, double, numerics::float32, D> on_device;
  upload_parameters(gpu(), wide, on_device);
  parameter_store<released_case, double, numerics::v4_released> want;
  quantise_parameters(exec::reference{}, wide, want);
  parameter_store<released_case, double, numerics::v4_released, D> got;
  quantise_parameters(gpu(), on_device, got);
  check_same(contents_of<released_case>(got.views()), contents_of<released_case>(want.views()));
}
