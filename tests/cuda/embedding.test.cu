// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/embedding.cuh>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
template <class T, class W>
void check() {
  for (const std::int64_t width : {1, 33, 512})
    for (const std::int64_t rows : {0, 1, 3, 70})
      for (const std::int64_t streams : {1, 4}) {
        auto table = random<W>(17 * width);
        auto tokens = integers<std::int32_t>(rows, 0, 16);
        auto x = poison<T>(rows * streams * width);
        embedding<T, space::host, W>::forward(exec::reference{}, {tokens.h(rows), table.h(17, width)},
                                              {x.h(rows, streams, width)});
        check_close(x, 0, [&] {  // copies
          embedding<T, D, W>::forward(gpu(), {tokens.d(rows), table.d(17, width)},
                                      {x.d(rows, streams, width)});
        });
      }
}
}  // namespace

TEST_CASE("embedding: cuda equals reference") {
  check<float, float>();
  check<double, double>();
  check<bf16, bf16>();
  check<float, bf16>();
}

TEST_CASE("embedding: on the GPU a token outside the table gives NaN") {
  auto table = random<float>(4 * 8);
  buffer<std::int32_t> ids(3);
  ids[0] = -1, ids[1] = 3, ids[2] = 4;
  twin<std::int32_t> tokens(std::move(ids));
  auto x = poison<float>(3 * 8);
  embedding<float, D>::forward(gpu(), {tokens.d(3), table.d(4, 8)}, {x.d(3, 1, 8)});
  const auto got = x.fetch();
  for (int c = 0; c < 8; ++c) {
    CHECK(std::isnan(got[c]));
    CHECK(got[8 + c] == table.host[24 + c]);
    CHECK(std::isnan(got[16 + c]));
  }
}

// Terms: up to 300 rows of four streams in one sum.
TEMPLATE_TEST_CASE("embedding: gradients, cuda equals reference, tokens that come again and again", "", float,
                   double, bf16) {
  using T = TestType;
  for (const std::int64_t width : {1, 130})
    for (const std::int64_t rows : {0, 1, 3, 300})
      for (const std::int64_t vocabulary : {2, 50}) {
        auto table = random<T>(vocabulary * width), dx = random<T>(rows * 4 * width, 2),
             dtable = random<T>(vocabulary * width, 3);
        auto tokens = integers<std::int32_t>(rows, 0, vocabulary - 1);
        embedding<T>::backward(exec::reference{}, host_work(), {tokens.h(rows), table.h(vocabulary, width)},
                               {dx.h(rows, 4, width)}, {dtable.h(vocabulary, width)});
        check_close(dtable, tolerance<T>(1200), [&] {
          embedding<T, D>::backward(gpu(), work(), {tokens.d(rows), table.d(vocabulary, width)},
                                    {dx.d(rows, 4, width)}, {dtable.d(vocabulary, width)});
        });
      }
}
