// SPDX-License-Identifier: Apache-2.0
/// Samples a batch of answers from a model, with their log-probabilities.
#pragma once

#include <dsv4/core/hash.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/sampler.hpp>
#include <dsv4/model/transformer.hpp>
#include <dsv4/train/rollout_batch.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
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

/// Writes answers token by token, all of a call at once, by a model in memory space `S`. Keeps the sequences'
/// caches from call to call, so that calls of the same size allocate little. Tokens are chosen by the host:
/// on a device it waits for the logits of each. Move-only.
template <model_config C, class T = float, numerics_config Q = numerics::float32, space S = space::host>
class rollout {
  using model = transformer<C, T, Q, S>;

 public:
  /// Appends `answers` answers to prompt 0, then to prompt 1, and so on. Each answer has a random sequence of
  /// its own, from the seed and its number. A log-probability is the model's own, at temperature 1 over the
  /// whole vocabulary, however its token was chosen. An answer without a stop token was cut off. Throws
  /// contract_error for an empty prompt.
  template <policy P>
  void sample(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& weights,
              std::span<const std::vector<std::int32_t>> prompts, const rollout_options& o,
              rollout_batch& batch) {
    expect(o.answers >= 1, "rollout", "answers", "at least 1", o.answers);
    expect(o.most_tokens >= 1, "rollout", "most_tokens", "at least 1", o.most_tokens);
    const workspace_scope<S> scope(w);
    const auto count = static_cast<std::int64_t>(prompts.size()) * o.answers;
    const std::int32_t stop = o.stop_token < 0 ? C.eos_token_id : o.stop_token;
    while (static_cast<std::int64_t>(states_.size()) < count) states_.emplace_back();
    std::vector<answer> all;
    const std::uint64_t seed = detail::splitmix64(o.seed);  // so that seeds 1 and 2 share no sequence
    for (std::int64_t i = 0; i < count; ++i) {
      states_[at(i)].reset();
      all.push_back({sampler(o.temperature, o.top_p, detail::splitmix64(seed + std::uint64_t(i))), {}, {}});
    }

    const auto logits = take<T>(w, count, C.vocab_size);
    prefill(p, w, weights, prompts, o.answers, logits);
    const auto first = on_host(p, logits.rows(0, static_cast<std::int64_t>(prompts.size())));
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
      extend(p, w, weights, segments, tokens, logits.rows(0, n));
      const auto next = on_host(p, logits.rows(0, n));
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

  /// Logits where the host can read them, until the next call.
  template <policy P>
  matrix_view<const T> on_host(const P& p, matrix_view<const T, S> logits) {
    if constexpr (S == space::host) {
      return logits;
    } else {
      fetched_.resize(static_cast<std::size_t>(logits.size()));
      fetch(p, logits, fetched_.data());
      return {fetched_.data(), logits.extent[0], logits.extent[1]};
    }
  }

  /// One call of the model.
  template <policy P>
  static void extend(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& weights,
                     std::span<const typename model::segment> segments,
                     const std::vector<std::int32_t>& tokens, matrix_view<T, S> logits) {
    const workspace_scope<S> scope(w);
    model::forward(p, w, weights, {segments, reachable(p, w, tokens)}, {logits, {}});
  }

  /// Each prompt once; the states of a group's other answers are copies.
  template <policy P>
  void prefill(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& weights,
               std::span<const std::vector<std::int32_t>> prompts, std::int64_t group,
               matrix_view<T, S> logits) {
    std::vector<typename model::segment> segments;
    std::vector<std::int32_t> tokens;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const auto size = static_cast<std::int64_t>(prompts[i].size());
      expect(size > 0, "rollout", numbered{"prompts[", static_cast<std::int64_t>(i), "] tokens"},
             "at least 1", size);
      segments.push_back({&states_[i * at(group)], size});
      tokens.insert(tokens.end(), prompts[i].begin(), prompts[i].end());
    }
    extend(p, w, weights, segments, tokens, logits.rows(0, static_cast<std::int64_t>(prompts.size())));
    for (std::size_t i = 0; i < states_.size() && i < prompts.size() * at(group); ++i)
      if (i % at(group) != 0) states_[i].restore(p, states_[i - i % at(group)]);
  }

  std::vector<sequence_state<C, T, S>> states_;
  std::vector<T> fetched_;
};

}  // namespace dsv4
