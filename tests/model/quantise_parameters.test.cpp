// SPDX-License-Identifier: Apache-2.0
// Which blocks a stack's matrices are rounded in, and the same bytes by every policy and into used memory.
#include "support/catch.hpp"
#include "support/oracle.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/model/quantise_parameters.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

using namespace dsv4;
using testing::released_case;

namespace {

/// The bytes of all weights, scales behind codes.
class contents {
 public:
  template <class U, int R>
  void operator()(const parameter_info&, const view<U, R>& v) {
    add(v.data, v.size());
  }
  template <class F>
  void operator()(const parameter_info&, const block_scaled_matrix<const F>& m) {
    add(m.codes, m.extent[0] * m.row_stride);
    add(m.scales, F::scale_rows(m.skipped_rows + m.extent[0]) * m.scale_row_stride);
  }
  template <class F>
  void operator()(const parameter_info& info, const block_scaled_stack<const F>& stack) {
    for (std::int64_t i = 0; i < stack.extent[0]; ++i) (*this)(info, stack[i]);
  }
  std::vector<std::byte> bytes;

 private:
  template <class U>
  void add(const U* data, std::int64_t count) {
    const auto more = std::as_bytes(std::span(data, static_cast<std::size_t>(count)));
    bytes.insert(bytes.end(), more.begin(), more.end());
  }
};

template <numerics_config Q>
std::vector<std::byte> bytes_of(model_parameters<float, Q> m) {
  contents all;
  for_each_parameter<released_case>(m, all);
  return all.bytes;
}

}  // namespace

TEST_CASE("the same bytes by every policy, and again in memory that held other weights") {
  const auto check = []<numerics_config Q>() {
    parameter_store<released_case, float> wide, other;
    initialise_by_name(wide, 1);
    initialise_by_name(other, 2);
    parameter_store<released_case, float, Q> narrow;
    quantise_parameters(exec::reference{}, wide, narrow);
    const auto want = bytes_of<Q>(narrow.views());
    rounded_parameters<released_case, float, Q> again;
    for (const int threads : {1, 3}) {
      CHECK(bytes_of<Q>(again.round(exec::cpu(threads), other)) != want);
      const auto* const embed = again.views().embed.data;
      CHECK(bytes_of<Q>(again.round(exec::cpu(threads), wide)) == want);
      CHECK(again.views().embed.data == embed);
    }
  };
  check.operator()<numerics::v4_released>();
  check.operator()<numerics::v4_released_base>();
  check.operator()<numerics::mxfp4_experts_only>();
}

TEST_CASE("experts are rounded each alone, groups of an output projection as one matrix") {
  // 48 rows an expert and 24 a group: blocks of 128 rows would reach across.
  parameter_store<released_case, float> wide;
  initialise_by_name(wide);
  parameter_store<released_case, float, numerics::v4_released_base> narrow;
  quantise_parameters(exec::reference{}, wide, narrow);
  const auto& w1 = narrow.views().layers[0].ffn.experts.w1;
  const auto& o_a = narrow.views().layers[0].attention.o_a;
  for (std::int64_t i = 0; i < w1.extent[0]; ++i) {
    CHECK(w1[i].skipped_rows == 0);
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(w1.extent[1] * w1.extent[2]));
    std::vector<e8m0> scales(static_cast<std::size_t>(fp8_weight::scale_columns(w1.extent[2])));
    const block_scaled_matrix<fp8_weight> alone(codes.data(), scales.data(), w1.extent[1], w1.extent[2]);
    quantise<fp8_weight, float>::forward(exec::reference{}, {wide.views().layers[0].ffn.experts.w1[i]},
                                         {alone});
    CHECK(std::equal(codes.begin(), codes.end(), w1[i].codes));
    CHECK(std::equal(scales.begin(), scales.end(), w1[i].scales));
  }
  CHECK(o_a[1].skipped_rows == 24);
  CHECK(o_a[1].scales == o_a[0].scales);
  CHECK(o_a[1].codes == o_a[0].row(24));
}
