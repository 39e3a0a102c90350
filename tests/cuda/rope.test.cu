// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/config/presets.hpp>
#include <dsv4/ops/cuda/rope.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: sine and cosine rounded once, two products, one sum.
TEMPLATE_TEST_CASE("rope: cuda equals reference, far positions too", "", float, double, bf16) {
  using T = TestType;
  const auto f = layer_rope_frequencies(v4_nano.attention, attention_kind::csa);
  for (const std::int64_t n : {0, 1, 3, 65})
    for (const std::int64_t heads : {1, 3, 64})
      for (const bool inverse : {false, true})
        for (const std::int64_t first : {0, 1000003}) {
          auto x = random<T>(n * heads * 21);
          rope<T>::forward(exec::reference{}, {f, first, 4, inverse}, {x.h(n, heads, 21)});
          check_close(x, tolerance<T>(4), [&] {
            rope<T, D>::forward(gpu(), {f, first, 4, inverse}, {x.d(n, heads, 21)});
          });
        }
}

TEMPLATE_TEST_CASE("rope: gradients, cuda equals reference, dx may be dy", "", float, double, bf16) {
  using T = TestType;
  const auto f = layer_rope_frequencies(v4_nano.attention, attention_kind::csa);
  for (const std::int64_t n : {0, 1, 3, 65})
    for (const bool inverse : {false, true}) {
      auto dy = random<T>(n * 3 * 21), dx = poison<T>(n * 3 * 21);
      rope<T>::backward(exec::reference{}, host_work(), {f, 77, 4, inverse}, {dy.h(n, 3, 21)},
                        {dx.h(n, 3, 21)});
      check_close(dx, tolerance<T>(4), [&] {
        rope<T, D>::backward(gpu(), work(), {f, 77, 4, inverse}, {dy.d(n, 3, 21)}, {dx.d(n, 3, 21)});
      });
      check_close(dy, INFINITY, [&] {
        rope<T, D>::backward(gpu(), work(), {f, 77, 4, inverse}, {dy.d(n, 3, 21)}, {dy.d(n, 3, 21)});
      });
      CHECK(same_bytes(dy.fetch(), dx.fetch()));
    }
}
