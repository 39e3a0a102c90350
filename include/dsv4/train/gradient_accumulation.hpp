// SPDX-License-Identifier: Apache-2.0
/// One batch from several micro-batches.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/train/gradient_clip.hpp>

#include <cstdint>

namespace dsv4 {

/// All gradients zero: what a batch begins with.
template <model_config C, class T, numerics_config Q, space S, policy P>
void zero_gradients(const P& p, parameter_store<C, T, Q, S>& gradients) {
  fill(p, gradients.reals(), T(0));
}
template <model_config C, class T, numerics_config Q>
void zero_gradients(parameter_store<C, T, Q>& gradients) {
  zero_gradients(exec::reference{}, gradients);
}

/// The rule: a batch's loss is the mean over all of its target tokens, however they are spread over
/// micro-batches. So every micro-batch's backward pass has upstream gradient 1 per target token, parameter
/// gradients add up as they always do, and the update divides once by the number of target tokens:
///
///   zero_gradients(gradients);
///   for each micro-batch: forward, backward with upstream 1, batch.add(targets, loss summed over them);
///   optimizer.step(p, w, weights, gradients, {rate, batch.gradient_scale(norm of the gradients)});
class gradient_accumulation {
 public:
  /// A micro-batch with `targets` target tokens whose losses sum to `loss`.
  void add(std::int64_t targets, double loss) {
    expect(targets >= 0, "gradient_accumulation::add", "targets", "0 or more", targets);
    targets_ += targets;
    loss_ += loss;
  }

  std::int64_t targets() const { return targets_; }
  /// Loss per target token. Throws contract_error when there was none.
  double mean_loss() const { return loss_ * mean(); }
  /// What turns summed gradients into those of the mean.
  double mean() const {
    expect(targets_ > 0, "gradient_accumulation", "targets", "at least one", targets_);
    return 1 / double(targets_);
  }
  /// That, and clipping of the mean gradient's norm to `most`; `norm` is that of the summed gradients.
  double gradient_scale(double norm, double most) const { return mean() * clip_scale(norm * mean(), most); }

 private:
  std::int64_t targets_ = 0;
  double loss_ = 0;
};

}  // namespace dsv4
