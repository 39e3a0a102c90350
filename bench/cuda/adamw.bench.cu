// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cuda/adamw.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added = [] {
  bench::add("adamw/forward",
             [](benchmark::State& state) {
               const std::int64_t n = state.range(0);
               const auto gradient = bench::random<float>(n), weight = bench::random<float>(n),
                          first = bench::zeros<float>(n), second = bench::zeros<float>(n);
               bench::measure(state, [&] {
                 adamw<float, D>::forward(bench::policy(), {gradient, 1e-3, 10}, {weight, first, second});
               });
               bench::report_elements<float>(state, 7 * n);  // four read, three written
             })
      ->ArgName("elements")
      ->Arg(1 << 26);
  return true;
}();
}  // namespace
