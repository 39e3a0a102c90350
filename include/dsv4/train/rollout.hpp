// SPDX-License-Identifier: Apache-2.0
/// Samples a batch of answers from a model, with their log-probabilities.
#pragma once

#include <dsv4/core/hash.hpp>
#include <dsv4/model/sampler.hpp>
#include <dsv4/model/transformer.hpp>
#include <dsv4/train/rollout_batch.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dsv4 {

struct rollout_options {
  std::int64_t answers = 1;       ///< to each prompt: a group of GRPO
  std::int64_t most_tokens = 64;  ///< of an answer, the stop token included
  std::int32_t stop_token = -1;   ///< ends an answer and is its last token; -1: eos_token_id
  double temperature = 1;         ///< 0: greedy
  double top_p = 1;
  std::uint64_t seed = 0;
};

/// log softmax(logits)[token], in double.
template <class T>
double log_probability(std::span<const T> logits, std::int32_t token) {
  const double top = double(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const T x : logits) sum += std::exp(double(x) - top);
  return double(logits[static_cast<std::size_t>(token)]) - top - std::log(sum);
}

/// Writes answers token by token, all of a call at once. Keeps the sequences' caches from call to call, so
/// that calls of the same size allocate little. Move-only.
template <model_config C, class T = float, numerics_config Q = numerics::float32>
class rollout {
  using model = transformer<C, T, Q>;

 public:
  /// Appends `answers` answers to prompt 0, then to prompt 1, and so on. Each answer has a random sequence of
  /// its own, from the seed and its number. A log-probability is the model's own, at temperature 1 over the
  /// whole vocabulary, however its token was chosen. An answer without a stop token was cut off. Throws
  /// contract_error for an empty prompt.
  template <policy P>
  void sample(const P& p, workspace& w, const model_parameters<T, Q>& weights,
              std::span<const std::vector<std::int32_t>> prompts, const rollout_options& o,
              rollout_batch& batch) {
    expect(o.answers >= 1, "rollout", "answers", "at least 1", o.answers);
    expect(o.most_tokens >= 1, "rollout", "most_tokens", "at least 1", o.most_tokens);
    const workspace_scope scope(w);
    const auto count = static_cast<std::int64_t>(prompts.size()) * o.answers;
    const std::int32_t stop = o.stop_token < 0 ? C.eos_token_id : o.stop_token;
    while (static_cast<std::int64_t>(states_.size()) < count) states_.emplace_back();
    std::vector<answer> all;
    const std::uint64_t seed = detail::splitmix64(o.seed);  // so that seeds 1 and 2 share no sequence
    for (std::int64_t i = 0; i < count; ++i) {
      states_[at(i)].reset();
      all.push_back({sampler(o.temperature, o.top_p, detail::splitmix64(seed + std::uint64_t(i))), {}, {}});
    }

    const auto logits = w.take<T>(count, C.vocab_size);
    const auto first = logits.rows(0, static_cast<std::int64_t>(prompts.size()));
    prefill(p, w, weights, prompts, o.answers, first);
    std::vector<std::int64_t> writing;  // answers that are not finished
    for (std::int64_t i = 0; i < count; ++i)
      if (all[at(i)].take(row(first, i / o.answers), stop, o.most_tokens)) writing.push_back(i);
    while (!writing.empty()) {
      std::vector<typename model::segment> segments;
      std::vector<std::int32_t> tokens;
      for (const std::int64_t i : writing) {
        segments.push_back({&states_[at(i)], 1});
        tokens.push_back(all[at(i)].tokens.back());
      }
      const auto n = static_cast<std::int64_t>(writing.size());
      const auto next = logits.rows(0, n);
      model::forward(p, w, weights, {segments, {tokens.data(), n}}, {next, {}});
      std::vector<std::int64_t> left;
      for (std::int64_t j = 0; j < n; ++j)
        if (all[at(writing[at(j)])].take(row(next, j), stop, o.most_tokens)) left.push_back(writing[at(j)]);
      writing = std::move(left);
    }
    for (std::int64_t i = 0; i < count; ++i)
      batch.add(prompts[at(i / o.answers)], all[at(i)].tokens, all[at(i)].logp);
  }

 private:
  struct answer {
    sampler choose;
    std::vector<std::int32_t> tokens;
    std::vector<double> logp;

    /// Takes the next token; whether another one is to follow.
    bool take(std::span<const T> logits, std::int32_t stop, std::int64_t most) {
      const std::int32_t token = choose(logits);
      tokens.push_back(token);
      logp.push_back(log_probability(logits, token));
      return token != stop && static_cast<std::int64_t>(tokens.size()) < most;
    }
  };

  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  static std::span<const T> row(matrix_view<const T> m, std::int64_t i) {
    return {m.data + i * m.stride[0], static_cast<std::size_t>(m.extent[1])};
  }

  /// Each prompt once; the states of a group's other answers are copies.
  template <policy P>
  void prefill(const P& p, workspace& w, const model_parameters<T, Q>& weights,
               std::span<const std::vector<std::int32_t>> prompts, std::int64_t group,
               matrix_view<T> logits) {
    std::vector<typename model::segment> segments;
    std::vector<std::int32_t> tokens;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const auto size = static_cast<std::int64_t>(prompts[i].size());
      expect(size > 0, "rollout", "prompts[" + std::to_string(i) + "] tokens", "at least 1", size);
      segments.push_back({&states_[i * at(group)], size});
      tokens.insert(tokens.end(), prompts[i].begin(), prompts[i].end());
    }
    model::forward(p, w, weights, {segments, {tokens.data(), static_cast<std::int64_t>(tokens.size())}},
                   {logits, {}});
    for (std::size_t i = 0; i < states_.size() && i < prompts.size() * at(group); ++i)
      if (i % at(group) != 0) states_[i].restore(states_[i - i % at(group)]);
  }

  std::vector<sequence_state<C, T>> states_;
};

}  // namespace dsv4
