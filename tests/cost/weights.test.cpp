// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/weights.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/train/parameter_rules.hpp>

#include <cstdint>
#include <type_traits>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// Elements and bytes of a model's own list of weights.
struct listed {
  std::int64_t elements = 0, bytes = 0;

  template <class U, int R>
  void operator()(const parameter_info& info, view<U, R>&) {
    if (!std::is_same_v<U, std::int32_t>) elements += count(info);
    bytes += count(info) * static_cast<std::int64_t>(sizeof(U));
  }
  template <class F>
  void operator()(const parameter_info& info, block_scaled_matrix<const F>&) {
    scaled<F>(info, 1);
  }
  template <class F>
  void operator()(const parameter_info& info, block_scaled_stack<const F>&) {
    scaled<F>(info, info.shape[0]);
  }

 private:
  static std::int64_t count(const parameter_info& info) {
    std::int64_t n = 1;
    for (std::int64_t e : info.shape) n *= e;
    return n;
  }
  template <class F>
  void scaled(const parameter_info& info, std::int64_t matrices) {
    elements += count(info);
    bytes += matrices * F::bytes(info.shape.end()[-2], info.shape.end()[-1]);
  }
};

template <model_config C, numerics_config Q>
listed list() {
  listed all;
  model_parameters<float, Q> views;
  for_each_parameter<C>(views, all);
  return all;
}

template <model_config C>
void check_sizes() {
  const listed wide = list<C, numerics::float32>(), released = list<C, numerics::v4_released>();
  CHECK(cost::parameters(C).total() == wide.elements);
  CHECK(cost::weight_bytes(C, numerics::float32).total() == wide.bytes);
  CHECK(cost::weight_bytes(C, numerics::v4_released).total() == released.bytes);
  std::int64_t muon = 0, listed_muon = 0;
  cost::for_each_weight(C, [&](const cost::weight& w) { muon += w.trained_by_muon ? w.elements() : 0; });
  for (const auto& row : parameter_rules<C>()) {
    std::int64_t n = row.count;
    for (std::int64_t e : row.shape) n *= e;
    if (row.rule.rule == update_rule::muon) listed_muon += n;
  }
  CHECK(muon == listed_muon);
}
}  // namespace

TEST_CASE("cost weights: the model's own list has as many, in as many bytes") {
  check_sizes<v4_nano>();
  check_sizes<v4_bench>();
  check_sizes<v4_flash>();
  check_sizes<v4_pro>();
}

TEST_CASE("cost weights: by component") {
  const auto p = cost::parameters(v4_flash);
  CHECK(p[cost::component::embedding] == std::int64_t{129280} * 4096);
  CHECK(p[cost::component::routed_experts] == std::int64_t{43} * 256 * 3 * 2048 * 4096);
  CHECK(p[cost::component::mtp] == count_parameters(v4_flash).mtp);
  // A token's own share of them is what it multiplies with, but for norms and the like.
  std::int64_t used = 0;
  cost::for_each_weight(v4_flash, [&](const cost::weight& w) {
    if (w.part != cost::component::mtp) used += w.rows * w.columns * w.used;
  });
  const std::int64_t active = count_parameters(v4_flash).active;
  CHECK(used < active);
  CHECK(double(active - used) < 1e-3 * double(active));
}
