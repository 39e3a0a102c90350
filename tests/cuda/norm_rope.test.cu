// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/config/presets.hpp>
#include <dsv4/ops/cuda/norm_rope.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// The two ops, whose kernels are compared with the reference elsewhere. Terms: of a rotation's two products
// one is not rounded, and the compiler chooses which. In place too, where rows go by vectors and where they
// do not.
TEMPLATE_TEST_CASE("norm_rope: cuda equals rms_norm and rope", "", float, double, bf16) {
  using T = TestType;
  for (const auto kind : {attention_kind::sliding, attention_kind::csa}) {
    const auto f = layer_rope_frequencies(v4_flash.attention, kind);
    for (const std::int64_t n : {0, 1, 3, 65})
      for (const std::int64_t heads : {1, 3, 64})
        for (const std::int64_t width : {64, 67, 128, 512})
          for (const bool weighted : {false, true}) {
            INFO(n << " x " << heads << " x " << width);
            auto x = random<T>(n * heads * width, 1), w = random<T>(width, 2),
                 y = poison<T>(n * heads * width);
            const typename norm_rope<T, D>::inputs in{
                x.d(n, heads, width), weighted ? w.d(width) : vector_view<T, D>{}, 1e-6, f, 70001, 4};
            norm_rope<T, D>::by_ops(gpu(), in, {y.d(n, heads, width)});
            y.host = y.fetch();
            check_close(y, tolerance<T>(2),
                        [&] { norm_rope<T, D>::forward(gpu(), in, {y.d(n, heads, width)}); });
            x.host = y.fetch();
            check_close(x, 0, [&] { norm_rope<T, D>::forward(gpu(), in, {x.d(n, heads, width)}); });
          }
  }
}
