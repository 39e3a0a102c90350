// SPDX-License-Identifier: Apache-2.0
/// One step of on-policy distillation: a student's own answers, judged by several teachers at every token
/// over the full vocabulary.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/tensor/buffer.hpp>
#include <dsv4/train/opd_loss.hpp>
#include <dsv4/train/rollout_pass.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4 {

/// The mean over answer tokens of sum_i w_i KL(student || teacher i), as a loss of answers. The answers are
/// data: sampling them is not differentiated (report, equation 29). Of each teacher its last hidden states of
/// the batch are kept, and its head; its logits exist a tile at a time. They are found once per batch,
/// however many passes follow.
template <class T, space S = space::host>
class distillation {
 public:
  /// `batch` must outlive this, and so must the teachers' weights. `tile`: columns of the vocabulary at a
  /// time.
  explicit distillation(const rollout_batch& batch, std::int64_t tile = 1024) : batch_(&batch), tile_(tile) {}

  /// A teacher, which may have any configuration with the student's vocabulary. weight[i] says how much
  /// sequence i listens to it; it passes over those alone whose weight is not 0. Throws contract_error for
  /// another number of weights, or a negative one.
  template <model_config C, numerics_config Q, policy P>
  void add_teacher(const P& p, basic_workspace<S>& w, const model_parameters<T, Q, S>& teacher,
                   std::span<const double> weight) {
    static_assert(std::is_same_v<typename storage_types<T, Q>::wide, T>,
                  "dsv4: a teacher's head must be in the scalar type");
    expect_extent("distillation", "weights", static_cast<std::int64_t>(weight.size()), batch_->size());
    rollout_batch listening;
    for (std::int64_t i = 0; i < batch_->size(); ++i) {
      const double own = weight[static_cast<std::size_t>(i)];
      if (!(own >= 0))
        throw contract_error("distillation", "weights[" + std::to_string(i) + "]", "0 or more",
                             std::to_string(own));
      if (own != 0) listening.add(*batch_, i);
    }
    entry e{buffer<T, S>(batch_->answer_rows() * C.hidden_size), C.hidden_size, teacher.head,
            std::vector<T>(weight.begin(), weight.end())};
    const auto all = e.hidden.as(batch_->answer_rows(), std::int64_t{C.hidden_size});
    const workspace_scope<S> scope(w);
    const auto found = take<T>(w, listening.answer_rows(), C.hidden_size);
    if (listening.size() > 0)
      rollout_pass<C, T, Q, recompute::nothing, S>::hidden_states(p, w, teacher, listening, found);
    std::int64_t from = 0;
    for (std::int64_t i = 0; i < batch_->size(); ++i) {
      if (weight[static_cast<std::size_t>(i)] == 0) continue;
      const std::int64_t begin = batch_->answer_offsets()(i), n = batch_->answer_offsets()(i + 1) - begin;
      copy_rows<T, S>::forward(p, {found, from, begin, n}, {all});
      from += n;
    }
    teachers_.push_back(std::move(e));
  }

  /// The loss of answers, with gradients where there is room for them. Sequences that follow one another and
  /// listen to the same teachers are taken together, and only those teachers' heads are read: sort a batch by
  /// teacher.
  template <policy P>
  double operator()(const P& p, basic_workspace<S>& w, const answer_states<T, S>& s) {
    const std::int64_t count = s.hidden.extent[0];
    const auto& offsets = batch_->answer_offsets();
    expect_extent("distillation", "answer rows", count, batch_->answer_rows());
    if (s.dhidden.data) fill(p, s.dhidden, T(0));
    double loss = 0;
    calls_ = 0;
    for (std::int64_t first = 0, last = 0; first < batch_->size(); first = last) {
      for (last = first + 1; last < batch_->size() && same_teachers(first, last);) ++last;
      const workspace_scope<S> scope(w);
      const std::int64_t begin = offsets(first), rows = offsets(last) - begin;
      std::vector<opd_teacher<T, S>> teachers;
      for (const entry& e : teachers_) {
        if (e.weight[at(first)] == 0) continue;
        const auto weight = take<T>(w, rows);
        for (std::int64_t i = first; i < last; ++i)
          fill(p, weight.rows(offsets(i) - begin, offsets(i + 1) - offsets(i)), e.weight[at(i)]);
        teachers.push_back(
            {matrix_view<const T, S>(e.hidden.data() + begin * e.width, rows, e.width), e.head, weight});
      }
      if (teachers.empty()) continue;
      const auto losses = take<T>(w, rows);
      loss += opd_loss<T, S>::forward(
          p, w, {s.hidden.rows(begin, rows), s.head, teachers, 1 / double(count), tile_},
          {losses, s.dhidden.data ? s.dhidden.rows(begin, rows) : s.dhidden, s.dhead});
      ++calls_;
    }
    return loss;
  }

  std::int64_t teachers() const { return static_cast<std::int64_t>(teachers_.size()); }
  /// How often teachers' heads were read in the last pass: groups of sequences.
  std::int64_t groups() const { return calls_; }
  /// Bytes of the kept hidden states.
  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const entry& e : teachers_) sum += e.hidden.size() * std::int64_t{sizeof(T)};
    return sum;
  }

 private:
  struct entry {
    buffer<T, S> hidden;  // (answer rows, width), zero where nobody listens
    std::int64_t width;
    matrix_view<const T, S> head;
    std::vector<T> weight;  // of every sequence
  };
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  bool same_teachers(std::int64_t i, std::int64_t j) const {
    return std::all_of(teachers_.begin(), teachers_.end(),
                       [&](const entry& e) { return (e.weight[at(i)] == 0) == (e.weight[at(j)] == 0); });
  }

  const rollout_batch* batch_;
  std::int64_t tile_;
  std::vector<entry> teachers_;
  std::int64_t calls_ = 0;
};

}  // namespace dsv4
