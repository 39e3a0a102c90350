// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/counting.hpp>
#include <dsv4/cost/flops.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/transformer.hpp>

#include <cstdint>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// Runs a prompt and then single tokens, and holds what was executed against the model of it.
template <model_config C>
void check(std::int64_t prompt, std::int64_t steps) {
  using model = transformer<C, float>;
  typename model::parameters weights;
  initialise_by_name(weights);
  typename model::state state;
  workspace w;
  buffer<float> logits(C.vocab_size);
  const cost::counting p;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(prompt));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7 % 251);
  const auto run = [&](std::int64_t n) {
    p.count() = {};
    const typename model::segment segment{&state, n};
    model::forward(p, w, weights.views(), {{&segment, 1}, {tokens.data(), n}, logit_rows::last},
                   {logits.as(1, C.vocab_size), {}});
  };
  const auto compare = [&](const cost::flop_count& want, std::int64_t context) {
    // Nothing is scored while all entries are attended anyhow.
    const bool selects = context / C.attention.csa_compress_ratio > C.attention.index_topk;
    CHECK(p.count().products == want.fp4_fp8 + want.fp8 + want.bf16);
    CHECK(p.count().index == (selects ? want.index : 0));
    CHECK(p.count().core == want.core);
  };
  run(prompt);
  INFO("a prompt of " << prompt);
  compare(cost::prefill_flops(C, prompt).total(), prompt);
  for (std::int64_t i = 0; i < steps; ++i) {
    INFO("token " << prompt + i + 1);
    run(1);
    compare(cost::decode_flops(C, prompt + i + 1).total(), prompt + i + 1);
  }
}
}  // namespace

TEST_CASE("cost counting: the model's FLOPs are those that its ops execute") {
  check<v4_nano>(150, 6);  // beyond the window and the indexer's top-k, within a group of every ratio
  check<v4_nano>(5, 30);
}
