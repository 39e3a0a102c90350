// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/rollout_trainer.hpp>
#include <dsv4/train/sft_loss.hpp>

using namespace dsv4;
using testing::rollout_model;

namespace {

rollout_trainer_options quick(std::int64_t steps = 40) {
  return {
      .schedule = {.peak = 0.01, .last = 0.001, .steps = steps, .warmup_steps = 2, .decay_begin = steps / 2}};
}

/// Fails to be finite.
struct broken {
  template <policy P>
  double operator()(const P&, workspace&, const answer_states<float>& s) const {
    std::fill_n(s.dhidden.data, s.dhidden.size(), NAN);
    return 1;
  }
};

/// For storage in blocks of 128: the smallest such model.
constexpr model_config narrow_model = [] {
  model_config c = rollout_model;
  c.hidden_size = 32;
  c.attention.head_dim = 16;
  c.moe.moe_intermediate_size = 32;
  return c;
}();

template <class Trainer>
std::vector<double> losses_of(Trainer& t, int steps, int threads = 2) {
  const auto batch = testing::some_answers();
  workspace w;
  const exec::cpu p(threads);
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) losses.push_back(t.step(p, w, batch, sft_loss<float>{}).loss);
  return losses;
}

}  // namespace

TEST_CASE("rollout_trainer: answers are learned, with the same bits for any number of threads") {
  std::vector<float> first;
  for (const int threads : {1, 2, 4}) {
    rollout_trainer<rollout_model> t(quick());
    t.start_from(testing::named_weights<rollout_model, float>(3));
    const auto losses = losses_of(t, 40, threads);
    CHECK(losses.front() > 2);
    CHECK(losses.back() < 0.5);
    CHECK(t.steps() == 40);
    const auto weights = testing::flat(t.weights());
    if (first.empty()) first = weights;
    CHECK(testing::same_bits(weights, first));
  }
}

TEST_CASE("rollout_trainer: starts from another model's weights and tables, and leaves that one alone") {
  rollout_trainer<rollout_model> base(quick()), grown(quick());
  base.start_from(testing::named_weights<rollout_model, float>(3));
  losses_of(base, 3);
  grown.start_from(base.weights());
  const auto before = testing::flat(base.weights());
  CHECK(testing::same_bits(testing::flat(grown.weights()), before));
  CHECK(grown.weights().views().layers[0].ffn.tid2eid(5, 1) ==
        base.weights().views().layers[0].ffn.tid2eid(5, 1));
  losses_of(grown, 1);
  CHECK(testing::same_bits(testing::flat(base.weights()), before));
  CHECK_FALSE(testing::same_bits(testing::flat(grown.weights()), before));
}

TEST_CASE("rollout_trainer: what the report says, and gradients that are not finite") {
  rollout_trainer<rollout_model> t(quick());
  t.start_from(testing::named_weights<rollout_model, float>(3));
  workspace w;
  const exec::cpu p(2);
  const auto batch = testing::some_answers();
  const auto good = t.step(p, w, batch, sft_loss<float>{});
  CHECK(good.step == 0);
  CHECK(good.learning_rate == 0.005);
  CHECK(good.gradient_norm > 0);
  CHECK(good.indexer_loss > 0);
  CHECK_FALSE(good.skipped);
  const auto before = testing::flat(t.weights());
  const auto bad = t.step(p, w, batch, broken{});
  CHECK(bad.skipped);
  CHECK(bad.step == 1);
  CHECK(testing::same_bits(testing::flat(t.weights()), before));
  CHECK_FALSE(t.step(p, w, batch, sft_loss<float>{}).skipped);
}

TEST_CASE("rollout_trainer: router biases move by their speed, and not without") {
  for (const double speed : {0.0, 0.25}) {
    auto o = quick();
    o.router_bias_speed = speed;
    rollout_trainer<rollout_model> t(o);
    t.start_from(testing::named_weights<rollout_model, float>(3));
    const float before = t.weights().views().layers[1].ffn.gate_bias(0);
    losses_of(t, 1);
    const double moved = std::abs(double(t.weights().views().layers[1].ffn.gate_bias(0)) - double(before));
    CHECK((moved == 0 || moved == Catch::Approx(speed).epsilon(1e-6)));
    bool any = false;
    const auto start = testing::named_weights<rollout_model, float>(3);
    for (std::size_t layer = 1; layer < 4; ++layer)
      for (int e = 0; e < 4; ++e)
        any = any || t.weights().views().layers[layer].ffn.gate_bias(e) !=
                         start.views().layers[layer].ffn.gate_bias(e);
    CHECK(any == (speed != 0));
  }
}

TEST_CASE("rollout_trainer: weights in the released formats are learned through their rounding") {
  rollout_trainer<narrow_model, float, numerics::v4_released> t(quick());
  t.start_from(testing::named_weights<narrow_model, float>(3));
  const auto losses = losses_of(t, 40);
  CHECK(losses.back() < losses.front() / 3);
}

TEST_CASE("rollout_trainer: a schedule that is none") {
  auto o = quick();
  o.schedule.decay_begin = 1000;
  CHECK_THROWS_AS(rollout_trainer<rollout_model>(o), contract_error);
}
