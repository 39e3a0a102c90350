// SPDX-License-Identifier: Apache-2.0
// Post-training on the GPU against the same on the host: sampling, fine-tuning, GRPO, distillation.
#include "support/device.cuh"
#include "support/golden.hpp"
#include <dsv4/cuda.cuh>
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/train/cuda.cuh>
#include <dsv4/train/distillation.hpp>
#include <dsv4/train/grpo.hpp>
#include <dsv4/train/initialise.hpp>
#include <dsv4/train/rollout.hpp>
#include <dsv4/train/rollout_trainer.hpp>
#include <dsv4/train/sft_loss.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

constexpr model_config tiny = [] {
  model_config c = trained;
  c.vocab_size = 64;
  return c;
}();

using prompts = std::vector<std::vector<std::int32_t>>;
const prompts questions{{1, 5, 9, 2}, {7}, {3, 3, 8, 4, 6, 2, 11, 60, 12}};
const rollout_options twice{.answers = 2, .most_tokens = 9, .stop_token = 1, .seed = 5};

/// The host's model of seed 3 writes.
rollout_batch answers_of_host(const rollout_options& o = twice) {
  parameter_store<tiny, double> m;
  initialise_by_name(m, 3);
  rollout_batch batch;
  rollout<tiny, double> writer;
  writer.sample(exec::reference{}, host_work(), m.views(), questions, o, batch);
  return batch;
}

/// Where a run happens.
template <space>
struct place;
template <>
struct place<space::host> {
  static exec::reference policy() { return {}; }
  static workspace& memory() { return host_work(); }
  template <class T>
  static void name(parameter_store<tiny, T>& m, std::uint64_t seed) {
    initialise_by_name(m, seed);
  }
  template <class T>
  static buffer<T> weights(parameter_store<tiny, T>& m) {
    buffer<T> all(m.reals().extent[0]);
    std::copy_n(m.reals().data, all.size(), all.data());
    return all;
  }
};
template <>
struct place<D> {
  static const exec::cuda& policy() { return gpu(); }
  static device_workspace& memory() { return work(); }
  template <class T>
  static void name(parameter_store<tiny, T, numerics::float32, D>& m, std::uint64_t seed) {
    parameter_store<tiny, T> here;
    initialise_by_name(here, seed);
    upload_parameters(gpu(), here, m);
  }
  template <class T>
  static buffer<T> weights(parameter_store<tiny, T, numerics::float32, D>& m) {
    parameter_store<tiny, T> copy;
    download_parameters(gpu(), m, copy);
    return place<space::host>::weights(copy);
  }
};

struct outcome {
  std::vector<double> numbers;
  buffer<double> weights;
};

/// Fine-tuning, GRPO with a reference and kept routing, and distillation from two teachers, one after the
/// other; what they report, and the weights they come to.
template <class T, numerics_config Q, space S>
outcome train(const rollout_batch& batch) {
  using on = place<S>;
  const auto& p = on::policy();
  auto& w = on::memory();
  rollout_trainer_options o;
  o.schedule = {.peak = 5e-3, .last = 5e-4, .steps = 9, .warmup_steps = 2, .decay_begin = 5};
  o.router_bias_speed = 1e-3;
  rollout_trainer<tiny, T, Q, recompute::nothing, S> trainer(o);
  typename rollout_trainer<tiny, T, Q, recompute::nothing, S>::store first, second;
  on::name(first, 3), on::name(second, 4);
  trainer.start_from(p, first);

  outcome r;
  const auto keep = [&](const rollout_report& report) {
    CHECK_FALSE(report.skipped);
    r.numbers.insert(r.numbers.end(), {report.loss, report.indexer_loss, report.gradient_norm});
  };
  for (int i = 0; i < 3; ++i) keep(trainer.step(p, w, batch, sft_loss<T, S>{}));
  const std::vector<double> rewards{1, 0, 0.5, 0.25, 0, 1};
  rounded_parameters<tiny, T, Q, S> rounded;
  const auto views = [&](auto& store) -> decltype(auto) {
    if constexpr (storage_types<T, Q>::plain)
      return store.views();
    else
      return rounded.round(p, store);
  };
  {
    grpo<tiny, T, Q, S> objective(p, w, trainer.current(p), views(second), batch, rewards, 2,
                                  {.kl_weight = 0.1});
    for (int i = 0; i < 3; ++i) {
      keep(trainer.step(p, w, batch, objective, &objective.routing()));
      r.numbers.insert(r.numbers.end(), {objective.result().mean_kl, objective.result().clipped_share});
    }
  }
  if constexpr (storage_types<T, Q>::plain) {
    distillation<T, S> objective(batch, 40);
    const std::vector<double> one{1, 1, 0.5, 0.5, 0, 0}, other{0, 0, 0.5, 0.5, 1, 1};
    objective.template add_teacher<tiny, Q>(p, w, first.views(), one);
    objective.template add_teacher<tiny, Q>(p, w, second.views(), other);
    for (int i = 0; i < 3; ++i) keep(trainer.step(p, w, batch, objective));
    CHECK(objective.groups() == 3);
  }
  const auto found = on::weights(trainer.weights());
  r.weights = buffer<double>(found.size());
  std::copy_n(found.data(), found.size(), r.weights.data());
  return r;
}

double apart(const outcome& a, const outcome& b) {
  REQUIRE(a.numbers.size() == b.numbers.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.numbers.size(); ++i)
    worst = std::max(worst, std::abs(a.numbers[i] - b.numbers[i]) / (1e-3 + std::abs(b.numbers[i])));
  return worst;
}

}  // namespace

TEST_CASE("rollout on the GPU: the host's tokens and log-probabilities, in double") {
  parameter_store<tiny, double, numerics::float32, D> there;
  place<D>::name(there, 3);
  for (const double temperature : {0.0, 1.0}) {
    rollout_options o = twice;
    o.temperature = temperature;
    const auto want = answers_of_host(o);
    rollout<tiny, double, numerics::float32, D> writer;
    for (int again = 0; again < 2; ++again) {  // with the caches of the first call
      rollout_batch got;
      writer.sample(gpu(), work(), there.views(), questions, o, got);
      REQUIRE(got.size() == want.size());
      for (std::int64_t i = 0; i < got.size(); ++i) CHECK(std::ranges::equal(got.answer(i), want.answer(i)));
      REQUIRE(got.answer_rows() == want.answer_rows());
      for (std::int64_t t = 0; t < got.answer_rows(); ++t)
        CHECK(std::abs(got.logp()(t) - want.logp()(t)) <= 1e-9);
    }
  }
}

// Two float64 programs that sum in different orders, as in trainer.test.cu.
TEST_CASE("post-training on the GPU has the host's losses and weights, double") {
  const auto batch = answers_of_host();
  const auto want = train<double, numerics::float32, space::host>(batch),
             got = train<double, numerics::float32, D>(batch);
  CHECK(apart(got, want) <= 1e-9);
  CHECK(difference(got.weights, want.weights) <= 1e-6);  // an update may turn a rounding into 5e-3 of itself
}

TEST_CASE("post-training through narrow weights on the GPU has the host's losses, double") {
  const auto batch = answers_of_host();
  CHECK(apart(train<double, numerics::v4_released, D>(batch),
              train<double, numerics::v4_released, space::host>(batch)) <= 1e-9);
}

TEST_CASE("post-training on the GPU in float has the same bits again") {
  const auto batch = answers_of_host();
  const auto one = train<float, numerics::float32, D>(batch), two = train<float, numerics::float32, D>(batch);
  CHECK(one.numbers == two.numbers);
  CHECK(same_bytes(one.weights, two.weights));
  CHECK(apart(one, train<float, numerics::float32, space::host>(batch)) <= 2e-3);
}
