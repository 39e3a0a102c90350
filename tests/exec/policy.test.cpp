// SPDX-License-Identifier: Apache-2.0
// What a policy may add to what it must have.
#include "support/catch.hpp"
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/cpu.hpp>

#include <algorithm>
#include <string>
#include <vector>

using namespace dsv4;

namespace {
/// The reference, with a profiler.
struct profiled : exec::reference {
  struct open_range {
    std::vector<std::string>& events;
    ~open_range() { events.push_back("end"); }
  };
  [[nodiscard]] open_range range(const char* name) const {
    events->push_back(name);
    return {*events};
  }
  std::vector<std::string>* events;
};
}  // namespace

template <class Op>
struct dsv4::kernel<Op, profiled> : kernel<Op, exec::reference> {};

TEST_CASE("blocks tell a policy with a profiler what they do, and others nothing") {
  constexpr hyper_connection_config h{};
  std::vector<std::string> events;
  profiled p;
  p.events = &events;
  workspace w;
  const std::int64_t n = h.hc_mult, width = 8;
  const auto zeros = [&](auto... extents) {
    const auto v = take<float>(w, extents...);
    std::fill_n(v.data, v.size(), 0.0f);
    return v;
  };
  const hyper_connection_parameters<float> parameters{zeros(h.mixes(), n * width), zeros(h.mixes()),
                                                      zeros(3)};
  const auto x = zeros(1, n, width);
  const auto norm = zeros(width);
  const auto run = [&](const auto& policy) {
    hyper_connection_site<h, float, space::host>(policy, w, parameters, norm, 1e-6, x,
                                                 [&](auto, auto) { events.push_back("sublayer"); });
  };
  run(p);
  CHECK(events == std::vector<std::string>{"hyper_connection_site", "sublayer", "end"});
  events.clear();
  run(exec::reference{});
  CHECK(events == std::vector<std::string>{"sublayer"});
}
