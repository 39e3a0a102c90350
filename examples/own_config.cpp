// SPDX-License-Identifier: Apache-2.0
// dsv4-own_config FILE: runs a recorded model of your own configuration and prints the largest difference of
// its logits.
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/model/transformer.hpp>

#include <cmath>
#include <cstring>
#include <iostream>

constexpr dsv4::model_config my_config = [] {
  using enum dsv4::attention_kind;
  dsv4::model_config c = dsv4::v4_flash;  // start from a released one and change what differs
  c.vocab_size = 96;
  c.hidden_size = 64;
  c.layers = dsv4::schedule({sliding, csa, hca});
  c.attention = {4, 32, 8, 24, 2, 16, 8, 4, 16, 16, 16, 4, c.attention.rope};
  c.attention.rope.original_max_position_embeddings = 64;
  c.moe = {8, 1, 2, 32, 0, 1.5, 10};
  c.num_nextn_predict_layers = 0;
  return c;
}();

int main(int argc, char** argv) try {
  using model = dsv4::transformer<my_config, double>;
  const dsv4::io::safetensors_file file(argc > 1 ? argv[1] : "tests/data/yarn.safetensors");
  model::parameters weights;
  dsv4::io::load_parameters(file, weights,
                            {.prefixes = {"param.", "buffer."},
                             .ignored = {"tokens", "logits", "hidden.", "loss", "decode_logits"}});
  dsv4::buffer<std::int32_t> tokens(file.at("tokens").shape[1]);
  std::memcpy(tokens.data(), file.bytes(file.at("tokens")).data(), file.at("tokens").size_bytes());

  model::state state;
  dsv4::workspace scratch;
  const model::segment whole{&state, tokens.size()};
  dsv4::buffer<double> logits(tokens.size() * my_config.vocab_size);
  model::forward(dsv4::exec::cpu{}, scratch, weights.views(),
                 {{&whole, 1}, tokens.as(tokens.size()), dsv4::logit_rows::all},
                 {logits.as(tokens.size(), my_config.vocab_size), {}});

  double worst = 0;
  const std::byte* want = file.bytes(file.at("logits")).data();
  for (std::int64_t i = 0; i < logits.size(); ++i)
    worst = std::max(worst, std::abs(logits[i] - double(dsv4::io::detail::read_as<float>(want + 4 * i))));
  std::cout << "largest difference of " << logits.size() << " logits: " << worst << '\n';
  return worst < 2e-5 ? 0 : 1;
} catch (const std::exception& failure) {
  std::cerr << failure.what() << '\n';
  return 2;
}
