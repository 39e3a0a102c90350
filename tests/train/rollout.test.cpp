// SPDX-License-Identifier: Apache-2.0
// Answers against a model that reads the whole text anew for every token; frequencies; groups; repeatability.
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/rollout.hpp>

#include <array>

using namespace dsv4;
using testing::rollout_model;
using ids = std::vector<std::int32_t>;

namespace {

const std::vector<ids> prompts{{0, 4, 7, 2, 9}, {6}, {0, 2, 2, 8, 3, 3, 9, 5, 5}};

template <class T, class P = exec::cpu>
rollout_batch sample(const parameter_store<rollout_model, T>& m, const rollout_options& o,
                     const std::vector<ids>& of = prompts, const P& p = exec::cpu(2)) {
  rollout_batch batch;
  rollout<rollout_model, T> writer;
  workspace w;
  writer.sample(p, w, m.views(), of, o, batch);
  return batch;
}

/// Logits after a text, from an empty state.
std::vector<double> logits(const parameter_store<rollout_model, double>& m, const ids& text) {
  using model = transformer<rollout_model, double>;
  std::vector<double> z(rollout_model.vocab_size);
  model::state state;
  const typename model::segment whole{&state, static_cast<std::int64_t>(text.size())};
  workspace w;
  model::forward(exec::cpu(1), w, m.views(),
                 {std::span(&whole, 1), {text.data(), static_cast<std::int64_t>(text.size())}},
                 {{z.data(), 1, rollout_model.vocab_size}, {}});
  return z;
}

ids list(std::span<const std::int32_t> s) { return {s.begin(), s.end()}; }

}  // namespace

TEST_CASE("rollout: greedy answers are those of a model that reads all of the text again") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = sample(m, {.most_tokens = 20, .temperature = 0});
  REQUIRE(batch.size() == 3);
  for (std::int64_t i = 0; i < 3; ++i) {
    ids text = prompts[static_cast<std::size_t>(i)];
    CHECK(list(batch.prompt(i)) == text);
    std::int64_t at = batch.answer_offsets()(i);
    const ids answer = list(batch.answer(i));
    for (const std::int32_t token : answer) {
      const auto z = logits(m, text);
      CHECK(token == std::max_element(z.begin(), z.end()) - z.begin());
      // One product of ten terms after eight sublayers, in another order.
      CHECK(batch.logp()(at++) ==
            Catch::Approx(log_probability(std::span<const double>(z), token)).epsilon(1e-11));
      text.push_back(token);
    }
    CHECK((answer.back() == rollout_model.eos_token_id || answer.size() == 20));
  }
}

TEST_CASE("rollout: a sampled answer's log-probabilities are those of the training pass") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = sample(m, {.answers = 3, .most_tokens = 9, .temperature = 1.3, .top_p = 0.9, .seed = 5});
  std::vector<double> logp(static_cast<std::size_t>(batch.answer_rows()));
  workspace w;
  rollout_pass<rollout_model, double>::log_probabilities(exec::cpu(2), w, m.views(), batch,
                                                         {logp.data(), batch.answer_rows()});
  for (std::int64_t t = 0; t < batch.answer_rows(); ++t)
    CHECK(batch.logp()(t) == Catch::Approx(logp[static_cast<std::size_t>(t)]).epsilon(1e-11));
}

TEST_CASE("rollout: tokens come as often as they are likely") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const std::int64_t count = 4000;
  const auto batch = sample(m, {.answers = count, .most_tokens = 1, .seed = 1}, {prompts[0]});
  std::array<double, rollout_model.vocab_size> seen = {};
  for (std::int64_t i = 0; i < count; ++i) seen[static_cast<std::size_t>(batch.answer(i)[0])] += 1;
  const auto z = logits(m, prompts[0]);
  double chi_squared = 0;
  for (std::int32_t v = 0; v < rollout_model.vocab_size; ++v) {
    const double expected = double(count) * std::exp(log_probability(std::span<const double>(z), v));
    REQUIRE(expected > 5);
    const double d = seen[static_cast<std::size_t>(v)] - expected;
    chi_squared += d * d / expected;
  }
  CHECK(chi_squared < 29.6);  // one of 1000 seeds is above, with ten degrees of freedom
}

TEST_CASE("rollout: a group's answers are those to the same prompt, given as often") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  std::vector<ids> repeated;
  for (const auto& p : prompts) repeated.insert(repeated.end(), 3, p);
  const rollout_options options{.most_tokens = 12, .seed = 2};
  rollout_options grouped = options;
  grouped.answers = 3;
  const auto a = sample(m, grouped), b = sample(m, options, repeated);
  REQUIRE(a.size() == 9);
  bool differ = false;
  for (std::int64_t i = 0; i < 9; ++i) {
    CHECK(list(a.prompt(i)) == list(b.prompt(i)));
    CHECK(list(a.answer(i)) == list(b.answer(i)));
    differ = differ || list(a.answer(i)) != list(a.answer(i - i % 3));
  }
  CHECK(differ);
}

TEST_CASE("rollout: the random sequences of a seed are not those of the next one, moved by an answer") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto a = sample(m, {.answers = 8, .most_tokens = 12, .seed = 2}, {prompts[0]}),
             b = sample(m, {.answers = 8, .most_tokens = 12, .seed = 3}, {prompts[0]});
  int same = 0;
  for (std::int64_t i = 0; i < 7; ++i) same += list(a.answer(i + 1)) == list(b.answer(i));
  CHECK(same < 7);
}

TEST_CASE("rollout: answers end with the stop token or are cut off") {
  const auto m = testing::named_weights<rollout_model, float>(3);
  bool stopped = false, cut = false;
  const auto batch = sample(m, {.answers = 20, .most_tokens = 6, .stop_token = 7, .seed = 4});
  for (std::int64_t i = 0; i < batch.size(); ++i) {
    const ids answer = list(batch.answer(i));
    CHECK(std::find(answer.begin(), answer.end() - 1, 7) == answer.end() - 1);
    CHECK((answer.back() == 7 || answer.size() == 6));
    stopped = stopped || answer.back() == 7;
    cut = cut || answer.back() != 7;
  }
  CHECK(stopped);
  CHECK(cut);
}

TEST_CASE("rollout: the same answers in every run, for any number of threads, and from used caches") {
  const auto m = testing::named_weights<rollout_model, float>(3);
  const rollout_options o{.answers = 5, .most_tokens = 15, .seed = 6};
  const auto once = sample(m, o);
  rollout<rollout_model, float> used;
  workspace w;
  for (const int threads : {1, 2, 4}) {
    rollout_batch again;
    used.sample(exec::cpu(threads), w, m.views(), prompts, o, again);
    REQUIRE(again.answer_rows() == once.answer_rows());
    for (std::int64_t t = 0; t < once.answer_rows(); ++t) {
      CHECK(again.answers()(t) == once.answers()(t));
      CHECK(again.logp()(t) == once.logp()(t));
    }
  }
  rollout_options other = o;
  other.seed = 7;
  const auto different = sample(m, other);
  CHECK(list({different.answers().data, std::size_t(different.answer_rows())}) !=
        list({once.answers().data, std::size_t(once.answer_rows())}));
}

TEST_CASE("rollout: nothing to write, and what it refuses") {
  const auto m = testing::named_weights<rollout_model, float>(3);
  CHECK(sample(m, {}, {}).size() == 0);
  CHECK_THROWS_WITH(sample(m, {}, {{1}, {}}), "rollout: prompts[1] tokens: expected at least 1, found 0");
  CHECK_THROWS_WITH(sample(m, {.answers = 0}), "rollout: answers: expected at least 1, found 0");
  CHECK_THROWS_WITH(sample(m, {.most_tokens = 0}), "rollout: most_tokens: expected at least 1, found 0");
}
