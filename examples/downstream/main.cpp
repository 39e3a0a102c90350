// SPDX-License-Identifier: Apache-2.0
// A small V4 of this project's own: a prompt of twelve tokens, then the likeliest next one.
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/sampler.hpp>
#include <dsv4/model/transformer.hpp>

#include <iostream>
#include <vector>

int main() {
  using model = dsv4::transformer<dsv4::v4_nano>;
  model::parameters weights;
  dsv4::initialise_by_name(weights);
  model::state state;
  dsv4::workspace scratch;
  std::vector<std::int32_t> prompt{256, 'H', 'e', 'l', 'l', 'o', ',', ' ', 'V', '4', '!', ' '};
  std::vector<float> logits(dsv4::v4_nano.vocab_size);
  const model::segment segment{&state, 12};
  model::forward(dsv4::exec::cpu{}, scratch, weights.views(), {{&segment, 1}, {prompt.data(), 12}},
                 {{logits.data(), 1, dsv4::v4_nano.vocab_size}, {}});
  std::cout << "token " << dsv4::sampler{}(std::span<const float>(logits)) << " after " << state.length()
            << " tokens\n";
}
