// SPDX-License-Identifier: Apache-2.0
// Gradients of losses of answers through the whole model, against central differences and against the
// training step whose targets are the answers.
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/rollout_pass.hpp>
#include <dsv4/train/sft_loss.hpp>

using namespace dsv4;
using testing::rollout_model;

namespace {

using store = parameter_store<rollout_model, double>;
using pass = rollout_pass<rollout_model, double>;

/// Any smooth loss: sum over answer rows t of sin of hidden . head[answer] + t.
struct wave {
  template <policy P>
  double operator()(const P&, workspace&, const answer_states<double>& s) const {
    double sum = 0;
    if (s.dhidden.data) std::fill_n(s.dhidden.data, s.dhidden.size(), 0.0);
    for (std::int64_t t = 0; t < s.hidden.extent[0]; ++t) {
      double x = double(t);
      for (std::int64_t c = 0; c < s.hidden.extent[1]; ++c) x += s.hidden(t, c) * s.head(s.answers(t), c);
      sum += std::sin(x);
      for (std::int64_t c = 0; c < s.hidden.extent[1]; ++c) {
        if (s.dhidden.data) s.dhidden(t, c) += std::cos(x) * s.head(s.answers(t), c);
        if (s.dhead.data) s.dhead(s.answers(t), c) += std::cos(x) * s.hidden(t, c);
      }
    }
    return sum;
  }
};

template <class Loss>
store gradients_of(const store& m, const rollout_batch& b, const rollout_pass_options<rollout_model>& o,
                   const Loss& loss, rollout_losses* losses = nullptr, int threads = 2) {
  store g;
  workspace w;
  const auto l = pass::step(exec::cpu(threads), w, m.views(), b, o, loss, &g.views());
  if (losses) *losses = l;
  return g;
}

}  // namespace

TEST_CASE("rollout_pass: gradients are those of the loss, with free and with kept routing") {
  // With these weights no expert and no entry is about to be chosen instead of another.
  auto m = testing::named_weights<rollout_model, double>(6);
  const auto batch = testing::some_answers();
  rollout_routing<rollout_model> kept;
  {
    const auto other = testing::named_weights<rollout_model, double>(4);
    workspace w;
    std::vector<double> logp(static_cast<std::size_t>(batch.answer_rows()));
    pass::log_probabilities(exec::cpu(2), w, other.views(), batch, {logp.data(), batch.answer_rows()}, &kept);
  }
  std::vector<std::vector<double>> both;
  for (const bool keep : {false, true}) {
    const rollout_pass_options<rollout_model> options{0, keep ? &kept : nullptr};
    auto g = gradients_of(m, batch, options, wave{});
    both.push_back(testing::flat(g));
    const auto value = [&] {
      workspace w;
      return pass::step(exec::cpu(2), w, m.views(), batch, options, wave{}, nullptr).loss;
    };
    const auto worst = testing::check_differences<rollout_model>(value, m, g);
    INFO(worst.text());
    CHECK(worst.checked > 100);
    CHECK(worst.error < 1e-7);  // of 16 sines: as for the model's own loss
  }
  CHECK(testing::difference(both[0], both[1]) > 1e-3);
}

TEST_CASE("rollout_pass: fine-tuning is the training step whose targets are the answers") {
  using model = training<rollout_model, double>;
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = testing::some_answers();
  const double answers = double(batch.answer_rows()), rows = double(batch.rows());
  store want;
  workspace w;
  const auto l =
      model::step(exec::cpu(2), w, m.views(), {batch.offsets(), batch.tokens(), batch.targets(), {}},
                  {.token = 1 / answers, .indexer = 0.3 / rows}, &want.views());
  CHECK(l.tokens == batch.answer_rows());
  rollout_losses losses;
  const auto got = gradients_of(m, batch, {.indexer = 0.3}, sft_loss<double>{}, &losses);
  CHECK(losses.loss == Catch::Approx(l.token / answers).epsilon(1e-14));
  CHECK(losses.indexer == Catch::Approx(l.indexer / double(l.indexer_rows)).epsilon(1e-14));
  CHECK(testing::difference(testing::flat(got), testing::flat(want)) < 1e-13);
  // With the choices of these very weights kept, too.
  rollout_routing<rollout_model> kept;
  std::vector<double> logp(static_cast<std::size_t>(batch.answer_rows()));
  pass::log_probabilities(exec::cpu(2), w, m.views(), batch, {logp.data(), batch.answer_rows()}, &kept);
  CHECK(testing::difference(testing::flat(gradients_of(m, batch, {0.3, &kept}, sft_loss<double>{})),
                            testing::flat(want)) < 1e-13);
  double sum = 0;
  for (const double x : logp) sum += x;
  CHECK(-sum == Catch::Approx(l.token).epsilon(1e-13));
}

TEST_CASE("rollout_pass: the same bits for any number of threads; parts that are not wanted are skipped") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = testing::some_answers();
  const auto want = testing::flat(gradients_of(m, batch, {.indexer = 1}, wave{}, nullptr, 1));
  for (const int threads : {1, 2, 4})
    CHECK(testing::same_bits(testing::flat(gradients_of(m, batch, {.indexer = 1}, wave{}, nullptr, threads)),
                             want));

  rollout_routing<rollout_model> kept;
  std::vector<double> logp(static_cast<std::size_t>(batch.answer_rows()));
  workspace w;
  pass::log_probabilities(exec::cpu(2), w, m.views(), batch, {logp.data(), batch.answer_rows()}, &kept);
  store some;
  model_gradients<double> only;
  only.layers.resize(4);
  only.norm = some.views().norm;
  pass::step(exec::cpu(2), w, m.views(), batch, {0, &kept}, wave{}, &only);
  const auto all = gradients_of(m, batch, {}, wave{});
  for (std::int64_t i = 0; i < rollout_model.hidden_size; ++i)
    CHECK(some.views().norm(i) == Catch::Approx(all.views().norm(i)).epsilon(1e-12));
  CHECK(some.views().embed(0, 0) == 0);
}

TEST_CASE("rollout_pass: nothing to learn from, and what it refuses") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  workspace w;
  store g;
  const exec::cpu p(1);
  CHECK(pass::step(p, w, m.views(), {}, {}, wave{}, &g.views()).loss == 0);
  std::vector<double> hidden(10);
  CHECK_THROWS_WITH(pass::hidden_states(p, w, m.views(), testing::some_answers(), {hidden.data(), 1, 10}),
                    "rollout_pass: hidden rows: expected 16, found 1");
}
