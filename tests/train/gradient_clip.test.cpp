// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/train/gradient_clip.hpp>

#include <cmath>
#include <limits>
#include <type_traits>

using namespace dsv4;
using namespace dsv4::testing;

TEMPLATE_TEST_CASE("gradient_clip: squares in double, the same for any number of threads", "", float,
                   double) {
  using T = TestType;
  workspace w;
  for (std::int64_t n : {0, 1, 7, 4096, 4097, 100000}) {
    const auto x = random<T>(n, 1, 3);
    double want = 0, one = 0;
    squared_norm<T>::forward(exec::reference{}, w, {x.as(n)}, {{&want, 1}});
    squared_norm<T>::forward(exec::cpu(1), w, {x.as(n)}, {{&one, 1}});
    CHECK(std::abs(one - want) <= want * rounding<double>(4096 / 8 + 25 + 3));  // a chunk's lane, then chunks
    for (int threads : {2, 3, 8}) {
      double many = 0;
      squared_norm<T>::forward(exec::cpu(threads), w, {x.as(n)}, {{&many, 1}});
      CHECK(many == one);
    }
  }
  // Floats whose squares a float cannot hold.
  const T large[] = {T(3e30f), T(4e30f)}, small[] = {T(3e-30f), T(4e-30f)};
  double sum = 0;
  squared_norm<T>::forward(exec::cpu(1), w, {{large, 2}}, {{&sum, 1}});
  CHECK(std::sqrt(sum) == Catch::Approx(5e30));
  squared_norm<T>::forward(exec::cpu(1), w, {{small, 2}}, {{&sum, 1}});
  CHECK(std::sqrt(sum) == Catch::Approx(5e-30).epsilon(1e-6));
}

TEST_CASE("gradient_clip: the norm of a model's gradients") {
  constexpr model_config config = v4_nano;
  workspace w;
  parameter_store<config, float> g;
  CHECK(gradient_norm(exec::cpu(2), w, g) == 0);
  initialise_by_name(g);
  double want = 0;
  for_each_parameter<config>(g.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>& v) {
    if constexpr (std::is_same_v<U, float>)
      if (!info.name.ends_with("gate.bias"))
        for (std::int64_t i = 0; i < v.size(); ++i) want += double(v.data[i]) * double(v.data[i]);
  });
  const double norm = gradient_norm(exec::cpu(2), w, g);
  CHECK(norm == Catch::Approx(std::sqrt(want)).epsilon(1e-12));
  CHECK(norm == gradient_norm(exec::cpu(1), w, g));

  g.views().layers[2].ffn.gate_bias(0) = NAN;  // has no gradient
  CHECK(norm == gradient_norm(exec::cpu(1), w, g));
  g.views().layers[2].attention.q_a(1, 2) = NAN;
  CHECK(std::isnan(gradient_norm(exec::cpu(1), w, g)));
}

TEST_CASE("gradient_clip: the factor") {
  CHECK(clip_scale(0) == 1);
  CHECK(clip_scale(1) == 1);
  CHECK(clip_scale(4) == 0.25);
  CHECK(clip_scale(4, 10) == 1);
  CHECK(clip_scale(40, 10) == 0.25);
  CHECK_THROWS_WITH(clip_scale(std::numeric_limits<double>::infinity()),
                    contains("clip_scale: norm: expected a finite number, found inf"));
  CHECK_THROWS_AS(clip_scale(NAN), contract_error);
}
