// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/cuda.cuh>
#include <dsv4/train/cuda.cuh>
#include <dsv4/train/opd_loss.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// A student and teachers of different widths, some of whom do not listen to some tokens.
template <class T>
struct problem {
  std::int64_t rows, width, vocabulary;
  std::vector<std::int64_t> widths;
  twin<T> hidden, head, losses, dhidden, dhead;
  std::vector<twin<T>> teacher_hidden, teacher_head, weights;

  problem(std::int64_t n, std::int64_t d, std::int64_t v, std::vector<std::int64_t> teachers)
      : rows(n),
        width(d),
        vocabulary(v),
        widths(std::move(teachers)),
        hidden(random<T>(n * d, 1)),
        head(random<T>(v * d, 2)),
        losses(poison<T>(n)),
        dhidden(poison<T>(n * d)),
        dhead(random<T>(v * d, 3)) {
    for (std::size_t i = 0; i < widths.size(); ++i) {
      teacher_hidden.push_back(random<T>(n * widths[i], 10 + i));
      teacher_head.push_back(random<T>(v * widths[i], 20 + i));
      buffer<T> w(n);
      for (std::int64_t t = 0; t < n; ++t)
        w[t] = (t + std::int64_t(i)) % 3 == 0 ? T(0) : T(0.5 + 0.4 * noise(30 + i, t));
      weights.push_back(twin<T>(std::move(w)));
    }
  }

  /// L by the reference, whose gradients stay in the twins' host side.
  double reference() {
    std::vector<opd_teacher<T>> all;
    for (std::size_t i = 0; i < widths.size(); ++i)
      all.push_back({teacher_hidden[i].h(rows, widths[i]), teacher_head[i].h(vocabulary, widths[i]),
                     weights[i].h(rows)});
    return opd_loss<T>::forward(exec::reference{}, host_work(),
                                {hidden.h(rows, width), head.h(vocabulary, width), all, 0.7, vocabulary},
                                {losses.h(rows), dhidden.h(rows, width), dhead.h(vocabulary, width)});
  }
  double device(std::int64_t tile, bool gradients = true) {
    std::vector<opd_teacher<T, D>> all;
    for (std::size_t i = 0; i < widths.size(); ++i)
      all.push_back({teacher_hidden[i].d(rows, widths[i]), teacher_head[i].d(vocabulary, widths[i]),
                     weights[i].d(rows)});
    return opd_loss<T, D>::forward(gpu(), work(),
                                   {hidden.d(rows, width), head.d(vocabulary, width), all, 0.7, tile},
                                   {losses.d(rows), gradients ? dhidden.d(rows, width) : matrix_view<T, D>{},
                                    gradients ? dhead.d(vocabulary, width) : matrix_view<T, D>{}});
  }
};
}  // namespace

// Logits are sums of up to `width` products below 1, and what follows of them adds up to 1 or to a logit: 64
// roundings, as on the host, of numbers up to 10.
TEMPLATE_TEST_CASE("opd_loss on the GPU: by the reference, for any tile, the same bits again", "", float,
                   double) {
  using T = TestType;
  for (const std::int64_t vocabulary : {1, 37, 700})
    for (const std::int64_t tile : {1024, 256, 33}) {
      CAPTURE(vocabulary, tile);
      problem<T> p(13, 24, vocabulary, {24, 40, 8});
      const double limit = tolerance<T>(640), want = p.reference();
      double got = 0;
      check_close(p.losses, limit, [&] { got = p.device(tile); });
      CHECK(std::abs(got - want) <= limit * (1 + std::abs(want)));
      check_close(p.dhidden, limit, [&] { p.device(tile); });
      check_close(p.dhead, limit, [&] { p.device(tile); });
      CHECK(p.device(tile, false) == got);
    }
}

TEST_CASE("opd_loss on the GPU: far logits stay finite; without teachers there is nothing to learn") {
  problem<float> p(5, 16, 300, {16});
  for (auto* x : {&p.hidden, &p.teacher_hidden[0]}) {
    for (float& v : x->host) v *= 200;
    copy_elements(gpu().stream(), x->host.data(), x->device.data(), x->size());
  }
  p.reference();
  // Logits of up to 3000, whose own rounding is that much larger, and through e^x their differences too.
  check_close(p.losses, tolerance<float>(640 * 3000), [&] { p.device(128); });
  for (const float v : p.dhidden.fetch()) CHECK(std::isfinite(v));
  problem<float> none(5, 16, 300, {});
  CHECK(none.device(128) == 0);
  for (const float v : none.dhidden.fetch()) CHECK(v == 0);
}
