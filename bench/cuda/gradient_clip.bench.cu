// SPDX-License-Identifier: Apache-2.0
#include <dsv4/train/cuda/gradient_clip.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

const bool added = [] {
  bench::add("squared_norm/forward",
             [](benchmark::State& state) {
               const std::int64_t n = state.range(0);
               const auto gradient = bench::random<float>(n);
               const auto sum = bench::zeros<double>(1);
               device_workspace scratch;
               bench::measure(state, [&] {
                 squared_norm<float, D>::forward(bench::policy(), scratch, {gradient}, {sum});
               });
               bench::report_elements<float>(state, n);
             })
      ->ArgName("elements")
      ->Arg(1 << 26);
  return true;
}();
}  // namespace
