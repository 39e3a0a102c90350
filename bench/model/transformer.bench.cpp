// SPDX-License-Identifier: Apache-2.0
// The whole 100M-parameter model in float: a prompt of 512 tokens, and single tokens after it.
#include <dsv4/config/parameter_count.hpp>
#include <dsv4/model/transformer.hpp>

#include <algorithm>
#include <support/fixtures.hpp>

namespace {
using namespace dsv4;
using bench::config;
using model = transformer<config>;
constexpr std::int64_t prompt = bench::prefill_rows, steps = 16;

const model::parameters& weights() {
  static const model::parameters w = [] {
    model::parameters fresh;
    initialise_by_name(fresh);
    return fresh;
  }();
  return w;
}

/// Two per active weight and token, the head for one token only, and attention: a dot product and a sum per
/// head and key, and the indexer's dot products where it has something to select.
double model_flops(std::int64_t first, std::int64_t tokens, std::int64_t heads_of_logits) {
  constexpr attention_config a = config.attention;
  constexpr std::int64_t head = std::int64_t{config.vocab_size} * config.hidden_size;
  double flops = 2.0 * double(tokens * (count_parameters(config).active - head) + heads_of_logits * head);
  for (int i = 0; i < config.num_hidden_layers(); ++i)
    for (std::int64_t t = first; t < first + tokens; ++t) {
      const std::int64_t ratio = a.compress_ratio(config.kind(i)), visible = ratio ? (t + 1) / ratio : 0;
      const bool select = config.kind(i) == attention_kind::csa && visible > a.index_topk;
      const std::int64_t kept = select ? a.index_topk : visible;
      const std::int64_t keys = std::min<std::int64_t>(t + 1, a.sliding_window) + kept;
      flops += 4.0 * double(keys * a.num_attention_heads * a.head_dim);
      if (select) flops += 2.0 * double(visible * a.index_n_heads * a.index_head_dim);
    }
  return flops;
}

/// One sequence that can be prefilled, and stepped, again and again.
struct session {
  model::state sequence{steps};
  workspace scratch;
  bench::array<std::int32_t, 1> tokens = bench::random_ids(config.vocab_size, prompt + steps);
  bench::array<float, 2> logits = bench::zeros(std::int64_t{1}, std::int64_t{config.vocab_size});

  void forward(std::int64_t count) {
    const model::segment next{&sequence, count};
    model::forward(bench::policy(), scratch, weights().views(),
                   {{&next, 1}, tokens.v.rows(sequence.length(), count)}, {logits, {}});
  }
};

void transformer_prefill(benchmark::State& state) {
  session s;
  s.forward(prompt);  // makes the weights and takes the scratch memory
  bench::measure(state, [&] {
    s.sequence.reset();
    s.forward(prompt);
  });
  bench::report_flops(state, model_flops(0, prompt, 1));
  bench::report_rows(state, prompt);
}
BENCHMARK(transformer_prefill)->UseRealTime()->Unit(benchmark::kMillisecond);

/// One token per iteration; every 16 back to the end of the prompt.
void transformer_decode(benchmark::State& state) {
  session s;
  s.forward(prompt);
  bench::measure(state, [&] {
    s.forward(1);
    if (s.sequence.length() == prompt + steps) s.sequence.truncate(prompt);
  });
  bench::report_flops(state, model_flops(prompt, steps, steps) / double(steps));
  bench::report_floats(state, count_parameters(config).active, bench::traffic::read);
  bench::report_rows(state, 1);
}
BENCHMARK(transformer_decode)->UseRealTime()->Unit(benchmark::kMillisecond);
}  // namespace
