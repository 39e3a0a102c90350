// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/config/presets.hpp>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE(
    "half-split instead of interleaved pairs, first instead of last dims: one-hot vectors turn in place") {
  const auto f = make_rope_frequencies(8, 10000, v4_flash.attention.rope);
  for (const double position : {1.0, 5.0, 1000.0})
    for (int hot = 0; hot < 20; ++hot) {
      buffer<double> x(20);
      x[hot] = 1;
      rope_config plain = v4_flash.attention.rope;
      plain.yarn_factor = 1;
      const auto g = make_rope_frequencies(8, 10000, plain);
      rope<double>::forward(exec::reference{}, {g, std::int64_t(position)}, {x.as(1, 1, 20)});
      for (int i = 0; i < 20; ++i) {
        if (hot < 12 || i / 2 != hot / 2) {
          CHECK(x[i] == (i == hot ? 1 : 0));  // outside the pair: untouched, to the bit
          continue;
        }
        const double angle = position * std::pow(10000.0, -2.0 * ((hot - 12) / 2) / 8);
        const double want = i == hot ? std::cos(angle) : hot % 2 == 0 ? std::sin(angle) : -std::sin(angle);
        CHECK(std::abs(x[i] - want) < 1e-12);
      }
    }
  CHECK(f.pairs == 4);
}

TEST_CASE(
    "one RoPE profile for all layers: sliding layers are plain, compressed layers have theta 160000 and "
    "YaRN") {
  const attention_config& a = v4_flash.attention;
  const auto sliding = layer_rope_frequencies(a, attention_kind::sliding);
  const auto csa = layer_rope_frequencies(a, attention_kind::csa),
             hca = layer_rope_frequencies(a, attention_kind::hca);
  for (int i = 0; i < 32; ++i) {
    CHECK(sliding.value[i] == Catch::Approx(std::pow(10000.0, -2.0 * i / 64)).epsilon(1e-13));
    const double plain = std::pow(160000.0, -2.0 * i / 64);
    const double ramp = i <= 15 ? 0 : i >= 25 ? 1 : (i - 15) / 10.0;  // YaRN between dimensions 15 and 25
    CHECK(csa.value[i] == Catch::Approx(plain * (1 - ramp) + plain / 16 * ramp).epsilon(1e-13));
    CHECK(hca.value[i] == csa.value[i]);
  }
}

TEST_CASE("inverse RoPE undoes RoPE; the dot product depends on the distance alone") {
  const auto f = layer_rope_frequencies(v4_nano.attention, attention_kind::csa);
  const auto x = random<double>(3 * 2 * 20);
  auto y = copy(x);
  rope<double>::forward(exec::reference{}, {f, 77}, {y.as(3, 2, 20)});
  CHECK(relative_error(y, x) > 0.01);
  rope<double>::forward(exec::reference{}, {f, 77, 1, true}, {y.as(3, 2, 20)});
  CHECK(relative_error(y, x) < 1e-14);
  const auto dot = [&](std::int64_t p, std::int64_t q) {
    auto a = random<double>(20, 3), b = random<double>(20, 4);
    rope<double>::forward(exec::reference{}, {f, p}, {a.as(1, 1, 20)});
    rope<double>::forward(exec::reference{}, {f, q}, {b.as(1, 1, 20)});
    double sum = 0;
    for (int i = 0; i < 20; ++i) sum += a[i] * b[i];
    return sum;
  };
  CHECK(std::abs(dot(9, 4) - dot(1000009, 1000004)) < 1e-9);
  CHECK(std::abs(dot(9, 4) - dot(4, 9)) > 1e-3);
}

TEST_CASE("compressed entries rotated at pool index j instead of position j m") {
  const auto f = layer_rope_frequencies(v4_nano.attention, attention_kind::hca);
  const auto x = random<double>(1001 * 16);
  auto steps = copy(x), single = copy(x);
  rope<double>::forward(exec::reference{}, {f, 0, 128}, {steps.as(1001, 1, 16)});
  for (std::int64_t j : {0, 1, 1000}) {
    rope<double>::forward(exec::reference{}, {f, j * 128}, {single.as(1001, 1, 16).rows(j, 1)});
    for (int i = 0; i < 16; ++i) CHECK(steps[j * 16 + i] == single[j * 16 + i]);
  }
}

TEMPLATE_TEST_CASE("rope: cpu equals reference", "", float, double) {
  const auto f = layer_rope_frequencies(v4_nano.attention, attention_kind::csa);
  for (std::int64_t n : {0, 1, 5, 64})
    for (bool inverse : {false, true}) {
      auto a = random<TestType>(n * 3 * 21), b = copy(a), c = copy(a);
      rope<TestType>::forward(exec::reference{}, {f, 100000, 3, inverse}, {a.as(n, 3, 21)});
      rope<TestType>::forward(exec::cpu(2), {f, 100000, 3, inverse}, {b.as(n, 3, 21)});
      rope<TestType>::forward(exec::cpu(4), {f, 100000, 3, inverse}, {c.as(n, 3, 21)});
      CHECK(relative_error(b, a) <= rounding<TestType>(4));
      CHECK(same(b, c));
    }
}
