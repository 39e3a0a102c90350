// SPDX-License-Identifier: Apache-2.0
/// Supervised fine-tuning: the cross-entropy of answers that somebody else wrote.
#pragma once

#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/train/rollout_pass.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4 {

/// The mean over answer tokens of -log pi(token), as a loss of answers.
template <class T>
struct sft_loss {
  template <policy P>
  double operator()(const P& p, workspace& w, const answer_states<T>& s) const {
    const workspace_scope scope(w);
    const std::int64_t rows = s.hidden.extent[0];
    const auto loss = w.take<T>(rows), lse = w.take<T>(rows), dloss = w.take<T>(rows);
    std::fill_n(dloss.data, rows, T(1 / double(rows)));
    const typename cross_entropy<T>::inputs in{s.hidden, s.head, s.answers};
    cross_entropy<T>::forward(p, w, in, {loss}, {lse});
    cross_entropy<T>::backward(p, w, in, {lse}, {dloss}, {s.dhidden, s.dhead});
    double sum = 0;
    for (std::int64_t t = 0; t < rows; ++t) sum += double(loss(t));
    return sum / double(rows);
  }
};

}  // namespace dsv4
