// SPDX-License-Identifier: Apache-2.0
/// A tiny model without multi-token prediction, and prompts for it, for the tests of post-training.
#pragma once

#include "model_gradients.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu.hpp>
#include <dsv4/train/grad_check.hpp>
#include <dsv4/train/rollout_batch.hpp>
#include <dsv4/train/rollout_pass.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace dsv4::testing {

/// tiny_model as the rollouts of the tests use it.
inline constexpr model_config rollout_model = [] {
  model_config c = tiny_model;
  c.moe.swiglu_limit = v4_nano.moe.swiglu_limit;
  c.num_nextn_predict_layers = 0;
  return c;
}();

/// Weights by name and seed.
template <model_config C, class T>
parameter_store<C, T> named_weights(std::uint64_t seed) {
  parameter_store<C, T> store;
  initialise_by_name(store, seed);
  return store;
}

/// Some sequences of several lengths, one with a prompt of one token, one with an answer of one token.
inline rollout_batch some_answers() {
  rollout_batch batch;
  batch.add(std::vector<std::int32_t>{0, 4, 7, 2, 9}, std::vector<std::int32_t>{3, 8, 5, 5, 2, 1});
  batch.add(std::vector<std::int32_t>{6}, std::vector<std::int32_t>{10, 4, 1});
  batch.add(std::vector<std::int32_t>{0, 2, 2, 8, 3, 3, 9}, std::vector<std::int32_t>{7});
  batch.add(std::vector<std::int32_t>{5, 1, 0}, std::vector<std::int32_t>{2, 6, 6, 9, 3, 1});
  return batch;
}

/// Compares `gradients` with central differences of `value()`, a function of `weights`; 8 elements of every
/// parameter that is neither an indexer's, which losses of answers do not reach, nor a router's bias.
template <model_config C, class F>
grad_check_result check_differences(const F& value, parameter_store<C, double>& weights,
                                    parameter_store<C, double>& gradients) {
  const auto arguments = differentiated(weights, gradients, false);
  return grad_check(value, std::span<const grad_check_argument>(arguments),
                    {.step = 2e-3, .steps = 3, .floor = 1e-2, .most = 8});
}

}  // namespace dsv4::testing
