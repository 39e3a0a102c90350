// SPDX-License-Identifier: Apache-2.0
/// Prompts with answers, packed as rows for training.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/tensor/view.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace dsv4 {

/// Sequences of a prompt and an answer. The row of a token is where the next one is predicted, so a sequence
/// has a row for each of its tokens but the last. The last rows of a sequence predict its answer; these
/// *answer rows* of all sequences are numbered through, and losses see them alone.
class rollout_batch {
 public:
  void clear() { *this = {}; }

  /// Appends a sequence. `logp` are the log-probabilities with which the answer's tokens were sampled; NaN
  /// where they are not given. Throws contract_error when the prompt or the answer is empty.
  void add(std::span<const std::int32_t> prompt, std::span<const std::int32_t> answer,
           std::span<const double> logp = {}) {
    const auto size = static_cast<std::int64_t>(answer.size());
    expect(!prompt.empty(), "rollout_batch::add", "prompt tokens", "at least 1", 0);
    expect(!answer.empty(), "rollout_batch::add", "answer tokens", "at least 1", 0);
    if (!logp.empty())
      expect_extent("rollout_batch::add", "logp", static_cast<std::int64_t>(logp.size()), size);
    tokens_.insert(tokens_.end(), prompt.begin(), prompt.end());
    tokens_.insert(tokens_.end(), answer.begin(), answer.end() - 1);
    targets_.insert(targets_.end(), prompt.size() - 1, -1);
    targets_.insert(targets_.end(), answer.begin(), answer.end());
    answers_.insert(answers_.end(), answer.begin(), answer.end());
    if (logp.empty())
      logp_.insert(logp_.end(), answer.size(), std::numeric_limits<double>::quiet_NaN());
    else
      logp_.insert(logp_.end(), logp.begin(), logp.end());
    offsets_.push_back(rows());
    answer_offsets_.push_back(answer_offsets_.back() + size);
  }

  /// Appends sequence i of another batch.
  void add(const rollout_batch& from, std::int64_t i) {
    const auto begin = static_cast<std::size_t>(from.answer_offsets_[at(i)]);
    add(from.prompt(i), from.answer(i), std::span(from.logp_).subspan(begin, from.answer(i).size()));
  }

  std::int64_t size() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  std::int64_t rows() const { return static_cast<std::int64_t>(tokens_.size()); }
  std::int64_t answer_rows() const { return static_cast<std::int64_t>(answers_.size()); }

  /// (size + 1): sequence i is rows [offsets[i], offsets[i + 1]).
  std::span<const std::int64_t> offsets() const { return offsets_; }
  /// (size + 1): its answer rows are [answer_offsets[i], answer_offsets[i + 1]).
  vector_view<const std::int64_t> answer_offsets() const { return {answer_offsets_.data(), size() + 1}; }
  vector_view<const std::int32_t> tokens() const { return {tokens_.data(), rows()}; }  // (rows)
  vector_view<const std::int32_t> targets() const {
    return {targets_.data(), rows()};
  }  // (rows), -1 in prompts
  /// What each answer row predicts.
  vector_view<const std::int32_t> answers() const {
    return {answers_.data(), answer_rows()};
  }                                                                                 // (answer rows)
  vector_view<const double> logp() const { return {logp_.data(), answer_rows()}; }  // (answer rows)

  std::span<const std::int32_t> prompt(std::int64_t i) const {
    const auto begin = static_cast<std::size_t>(offsets_[at(i)]),
               end = static_cast<std::size_t>(offsets_[at(i) + 1]);
    return std::span(tokens_).subspan(begin, end - begin + 1 - answer(i).size());
  }
  std::span<const std::int32_t> answer(std::int64_t i) const {
    const auto begin = static_cast<std::size_t>(answer_offsets_[at(i)]),
               end = static_cast<std::size_t>(answer_offsets_[at(i) + 1]);
    return std::span(answers_).subspan(begin, end - begin);
  }
  /// The row of the first token of the answer to predict: that of the prompt's last token.
  std::int64_t first_answer_row(std::int64_t i) const {
    return offsets_[at(i) + 1] - static_cast<std::int64_t>(answer(i).size());
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  std::vector<std::int32_t> tokens_, targets_, answers_;
  std::vector<std::int64_t> offsets_{0}, answer_offsets_{0};
  std::vector<double> logp_;
};

}  // namespace dsv4
