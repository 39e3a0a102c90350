// SPDX-License-Identifier: Apache-2.0
/// Supervised fine-tuning: the cross-entropy of answers that somebody else wrote.
#pragma once

#include <dsv4/exec/transfer.hpp>
#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/train/rollout_pass.hpp>

#include <cstdint>

namespace dsv4 {

/// The mean over answer tokens of -log pi(token), as a loss of answers.
template <class T, space S = space::host>
struct sft_loss {
  template <policy P>
  double operator()(const P& p, basic_workspace<S>& w, const answer_states<T, S>& s) const {
    const workspace_scope<S> scope(w);
    const std::int64_t rows = s.hidden.extent[0];
    const auto loss = take<T>(w, rows), dloss = take<T>(w, rows);
    fill(p, dloss, T(1 / double(rows)));
    cross_entropy<T, S>::forward_backward(p, w, {s.hidden, s.head, s.answers}, {loss}, {dloss},
                                          {s.dhidden, s.dhead});
    double sum = 0;
    for (const T l : fetched(p, loss)) sum += double(l);
    return sum / double(rows);
  }
};

}  // namespace dsv4
