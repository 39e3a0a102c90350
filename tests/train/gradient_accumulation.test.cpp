// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/train/gradient_accumulation.hpp>

#include <cmath>
#include <type_traits>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// Rows [begin, end) of a least-squares problem: adds the gradient of half the squared error, returns the
/// loss.
double backward(const buffer<double>& x, const buffer<double>& y, const buffer<double>& w, std::int64_t begin,
                std::int64_t end, buffer<double>& gradient) {
  double loss = 0;
  for (std::int64_t t = begin; t < end; ++t) {
    double error = -y[t];
    for (std::int64_t i = 0; i < w.size(); ++i) error += w[i] * x[t * w.size() + i];
    for (std::int64_t i = 0; i < w.size(); ++i) gradient[i] += error * x[t * w.size() + i];
    loss += error * error / 2;
  }
  return loss;
}
}  // namespace

TEST_CASE("gradient_accumulation: micro-batches of any sizes make the batch's gradient") {
  const std::int64_t rows = 40, width = 6;
  const auto x = random<double>(rows * width, 1), y = random<double>(rows, 2), w = random<double>(width, 3);
  buffer<double> whole(width);
  gradient_accumulation one;
  one.add(rows, backward(x, y, w, 0, rows, whole));

  buffer<double> parts(width);
  gradient_accumulation many;
  const std::int64_t bounds[] = {0, 1, 1, 17, 23, 40};  // unequal, one empty
  for (int i = 0; i < 5; ++i)
    many.add(bounds[i + 1] - bounds[i], backward(x, y, w, bounds[i], bounds[i + 1], parts));
  CHECK(many.targets() == rows);
  CHECK(many.mean_loss() == Catch::Approx(one.mean_loss()).epsilon(1e-14));
  double norm = 0;
  for (std::int64_t i = 0; i < width; ++i) {
    CHECK(whole[i] == parts[i]);  // rows are added in the same order
    norm += parts[i] * parts[i];
  }
  norm = std::sqrt(norm);
  CHECK(many.mean() == 1.0 / 40);
  CHECK(many.gradient_scale(norm, 1e9) == 1.0 / 40);
  CHECK(many.gradient_scale(norm, 0.5 * norm / 40) == Catch::Approx(0.5 / 40));  // clipped to half
}

TEST_CASE("gradient_accumulation: a batch without targets has no mean") {
  gradient_accumulation none;
  none.add(0, 0);
  CHECK_THROWS_WITH(none.mean_loss(),
                    contains("gradient_accumulation: targets: expected at least one, found 0"));
  CHECK_THROWS_AS(none.add(-1, 0), contract_error);
}

TEST_CASE("gradient_accumulation: a batch begins at zero") {
  constexpr model_config config = v4_nano;
  parameter_store<config, float> g;
  initialise_by_name(g);
  workspace w;
  CHECK(gradient_norm(exec::cpu(1), w, g) > 1);
  const std::int32_t table = g.views().layers[0].ffn.tid2eid(1, 1);
  zero_gradients(g);
  CHECK(gradient_norm(exec::cpu(1), w, g) == 0);
  CHECK(g.views().layers[2].ffn.gate_bias(1) == 0);
  CHECK(g.views().layers[0].ffn.tid2eid(1, 1) == table);  // no gradient
}
