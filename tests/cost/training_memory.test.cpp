// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/training_memory.hpp>
#include <dsv4/model/training_context.hpp>
#include <dsv4/train/optimizer.hpp>

#include <cstdint>
#include <span>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// Lengths are multiples of 128 tokens: then no array is padded, and the counts agree to the byte.
template <model_config C, recompute_policy R>
void check_activations() {
  for (std::int64_t tokens : {128, 512})
    for (bool mtp : {false, true})
      for (bool indexer : {false, true})
        for (bool dense : {false, true}) {
          const std::vector<std::int64_t> offsets{0, tokens};
          const training_options options{.mtp = mtp, .attention = {.dense = dense, .indexer_loss = indexer}};
          const cost::training_setup setup{
              .recompute = R, .mtp = mtp, .indexer_loss = indexer, .dense = dense};
          CHECK(cost::activation_bytes(C, tokens, setup) ==
                training_context<C, float, R>::bytes(std::span<const std::int64_t>(offsets), options));
        }
}
}  // namespace

TEST_CASE("cost training_memory: what a training context takes") {
  check_activations<v4_nano, recompute::nothing>();
  check_activations<v4_nano, recompute::streams>();
  check_activations<v4_nano, recompute::sublayers>();
  check_activations<v4_bench, recompute::nothing>();
  check_activations<v4_bench, recompute::everything>();
}

TEST_CASE("cost training_memory: the optimiser's state") {
  const auto check = []<class M>(M) {
    optimizer<v4_nano, float, M> o;
    std::int64_t bytes = 0;
    o.for_each_state([&]<class U>(const std::string& name, vector_view<U> v) {
      if (name != "steps") bytes += v.size() * static_cast<std::int64_t>(sizeof(U));
    });
    CHECK(cost::optimizer_bytes(v4_nano, {.momentum_bytes = sizeof(M)}) == bytes);
  };
  check(float{});
  check(bf16{});
}

TEST_CASE("cost training_memory: documents add up, and recomputing saves") {
  const auto plain = cost::training_bytes(v4_bench, 512), four = cost::training_bytes(v4_bench, 512, 4);
  CHECK(four.activations == 4 * plain.activations);
  CHECK(four.weights == plain.weights);
  CHECK(plain.gradients == plain.weights);
  CHECK(plain.total() == plain.weights + plain.gradients + plain.optimizer + plain.activations);
  const auto less = cost::training_bytes(v4_bench, 512, 1, {.recompute = recompute::everything});
  CHECK(less.activations * 3 < plain.activations);
}
