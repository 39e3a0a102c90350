// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/compress_pool.cuh>

using namespace dsv4;
using namespace dsv4::testing;

// Terms: up to 128 tokens, each with an exponential of 2 units and two products, in up to 8 parts that are
// rescaled when they are joined; logits of magnitude 6 are rounded before the exponential (6 units).
TEMPLATE_TEST_CASE("compress_pool: cuda equals reference", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t m : {4, 16, 128})
    for (const bool overlap : {false, true})
      for (const std::int64_t entries : {0, 1, 3})
        for (const std::int64_t first : {0, 2})
          for (const std::int64_t width : {5, 32, 100}) {
            const std::int64_t channels = width * (overlap ? 2 : 1);
            const std::int64_t oldest = std::max<std::int64_t>(0, first - 1) * m,
                               rows = (first + entries) * m - oldest + 3;
            auto kv = random<T>(rows * channels, 1), gate = random<T>(rows * channels, 2, 5),
                 bias = random<T>(m * channels, 3);
            auto y = poison<T>(entries * width);
            compress_pool<T>::forward(
                exec::reference{},
                {kv.h(rows, channels), gate.h(rows, channels), bias.h(m, channels), oldest, first, overlap},
                {y.h(entries, width)});
            check_close(y, tolerance<T>(64), [&] {
              compress_pool<T, D>::forward(
                  gpu(),
                  {kv.d(rows, channels), gate.d(rows, channels), bias.d(m, channels), oldest, first, overlap},
                  {y.d(entries, width)});
            });
          }
}

// Terms: those of forward, and two more; the bias adds up to three groups.
TEMPLATE_TEST_CASE("compress_pool: gradients, cuda equals reference", "", float, double) {
  using T = TestType;
  for (const std::int64_t m : {4, 128})
    for (const bool overlap : {false, true})
      for (const std::int64_t entries : {0, 1, 3})
        for (const std::int64_t first : {0, 2}) {
          const std::int64_t width = 37, channels = width * (overlap ? 2 : 1);
          const std::int64_t oldest = std::max<std::int64_t>(0, first - 1) * m,
                             rows = (first + entries) * m - oldest + 3;
          auto kv = random<T>(rows * channels, 1), gate = random<T>(rows * channels, 2, 5),
               bias = random<T>(m * channels, 3), dy = random<T>(entries * width, 4);
          auto dkv = poison<T>(rows * channels), dgate = poison<T>(rows * channels),
               dbias = random<T>(m * channels, 5);
          compress_pool<T>::backward(
              exec::reference{}, host_work(),
              {kv.h(rows, channels), gate.h(rows, channels), bias.h(m, channels), oldest, first, overlap},
              {dy.h(entries, width)}, {dkv.h(rows, channels), dgate.h(rows, channels), dbias.h(m, channels)});
          const auto run = [&] {
            compress_pool<T, D>::backward(
                gpu(), work(),
                {kv.d(rows, channels), gate.d(rows, channels), bias.d(m, channels), oldest, first, overlap},
                {dy.d(entries, width)},
                {dkv.d(rows, channels), dgate.d(rows, channels), dbias.d(m, channels)});
          };
          check_close(dkv, tolerance<T>(150), run);
          check_close(dgate, tolerance<T>(150), run);
          check_close(dbias, tolerance<T>(150), run);
        }
}
