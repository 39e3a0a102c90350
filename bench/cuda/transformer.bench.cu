// SPDX-License-Identifier: Apache-2.0
// A whole layer of each kind in the released formats, with its experts and residual sites: a prompt, and one
// token in a long context. A layer is a model of one layer without its logits; a row of the embedding per
// token comes on top.
#include <dsv4/cost/flops.hpp>
#include <dsv4/cuda.cuh>
#include <dsv4/model/transformer.hpp>

#include <support/device_layers.cuh>

namespace {
using namespace dsv4;
using bench::D;
constexpr numerics_config Q = numerics::v4_released;

/// Bytes of the layer's weights: all, or those that one token reads.
template <model_config C, attention_kind K>
double weight_bytes(bool one_token) {
  double sum = 0;
  cost::for_each_layer_weight(C, K, false, [&](const cost::weight& w) {
    const double all = double(cost::bytes_of(w, Q, 2));
    sum += one_token && w.used > 0 ? all * double(w.used) / double(w.count) : all;
  });
  return sum;
}
/// Bytes of the cache that the token after `context` others reads, in bf16.
template <model_config C, attention_kind K>
double cache_bytes(std::int64_t context) {
  const bench::seen s(C.attention, K, context);
  const std::int64_t keys = s.keys() * C.attention.head_dim;
  return 2.0 * double(keys + (K == attention_kind::csa ? s.visible * C.attention.index_head_dim : 0));
}

template <model_config C, attention_kind K>
void run(benchmark::State& state, std::int64_t context, std::int64_t rows) {
  constexpr model_config config = bench::whole_layer<C, K>;
  using model = transformer<config, bf16, Q, D>;
  const bench::random_weights<config, Q> weights;
  const auto ids = bench::random_ids(config.vocab_size, rows);
  typename model::state sequence;
  auto& cache = sequence.cache(0);
  cache.reserve(bench::policy(), context + rows, 0);
  for (auto* entries : {&cache.main.entries, &cache.index.entries}) {
    const auto v = entries->view();
    if (v.data) bench::fill_random(v.data, v.size(), 1);
  }
  device_workspace scratch;
  const typename model::segment segment{&sequence, rows};
  bench::measure(state, [&] {
    sequence.set_lengths(context, 0);  // the same step every time
    model::forward(bench::policy(), scratch, weights.views(), {std::span(&segment, 1), ids, logit_rows::none},
                   {});
  });
  const bool decode = rows == 1;
  bench::report_flops(state, double(decode ? cost::decode_flops(C, K, context).total().raw()
                                           : cost::prefill_flops(C, K, rows).total().raw()));
  bench::report_bytes(state, std::int64_t(weight_bytes<C, K>(decode) + bench::stream_bytes(C, rows) +
                                          (decode ? cache_bytes<C, K>(context) : 0)));
  state.counters["workspace MB"] = double(scratch.high_water()) * 1e-6;
}

template <attention_kind K>
bool add(const std::string& name) {
  bench::at_device_sizes(name + "/prefill", {bench::prompt_rows}, [](benchmark::State& state, auto of) {
    run<of.config, K>(state, 0, state.range(0));
  });
  // The token that completes no entry; one in 4 (CSA) or 128 (HCA) does.
  bench::at_device_sizes(
      name + "/decode", {4096, 65536, 1 << 20},
      [](benchmark::State& state, auto of) { run<of.config, K>(state, state.range(0), 1); }, "context");
  return true;
}
const bool added[] = {add<attention_kind::sliding>("layer_sliding"), add<attention_kind::csa>("layer_csa"),
                      add<attention_kind::hca>("layer_hca")};
}  // namespace
