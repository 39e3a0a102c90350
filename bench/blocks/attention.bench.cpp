// SPDX-License-Identifier: Apache-2.0
// The attention sublayer of each kind: a prompt at once, and one token after it. V4-Flash and V4-Pro in the
// released formats.
#include <dsv4/blocks/attention.hpp>

#include <algorithm>
#include <support/weights.hpp>
#include <support/work.hpp>

namespace {
using namespace dsv4;

/// Bytes of the weights that every call reads.
template <class Weights>
std::int64_t weight_bytes(const Weights& w) {
  const auto& a = w.layer().attention;
  std::int64_t sum =
      Weights::bytes(a.q_a) + Weights::bytes(a.q_b) + Weights::bytes(a.kv) + Weights::bytes(a.o_b);
  for (std::int64_t g = 0; g < a.o_a.extent[0]; ++g) sum += Weights::bytes(a.o_a[g]);
  const auto compressor = [&](const auto& c) {
    if (c.kv.extent[0] > 0) sum += Weights::bytes(c.kv) + Weights::bytes(c.gate);
  };
  compressor(a.compressor);
  compressor(a.indexer.compressor);
  if (a.indexer.q_b.extent[0] > 0) sum += Weights::bytes(a.indexer.q_b) + Weights::bytes(a.indexer.weights);
  return sum;
}

constexpr std::int64_t context = 512;

template <attention_kind K>
bool add(const std::string& name) {
  return bench::at_every_compiled_size(
      name, {bench::decode_rows, context}, []<model_config C>(benchmark::State& state) {
        constexpr numerics_config Q = bench::formats_of<C>;
        const bench::random_weights<bench::one_layer<C, K>, Q> weights;
        workspace scratch;
        attention_cache<float> cache(C.attention, K, 0);
        cache.reserve(bench::policy(), context + 1, 0);
        const auto x = bench::random(context, C.hidden_size), y = bench::zeros(context, C.hidden_size);
        const auto run = [&](std::int64_t position, std::int64_t rows) {
          const attention_segment<float> segment{&cache, position, 0, rows};
          attention<C.attention, Q, float, space::host>(
              bench::policy(), scratch, weights.layer().attention, C.rms_norm_eps, std::span(&segment, 1),
              matrix_view<const float>(x.v.rows(0, rows)), y.v.rows(0, rows));
        };
        const std::int64_t rows = state.range(0), first = rows == context ? 0 : context;
        run(0, context);  // what a decode step finds
        // The cache holds positions, not a length: the same step can be repeated.
        bench::measure(state, [&] { run(first, rows); });
        bench::report_flops(state, bench::attention_flops(C, K, first, rows));
        bench::report_bytes(state, weight_bytes(weights), bench::traffic::read);
        bench::report_rows(state, rows);
      });
}
const bool added[] = {add<attention_kind::sliding>("attention_sliding/forward"),
                      add<attention_kind::csa>("attention_csa/forward"),
                      add<attention_kind::hca>("attention_hca/forward")};
}  // namespace
