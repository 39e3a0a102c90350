// SPDX-License-Identifier: Apache-2.0
// All entries of a prompt, and back; and the one that a decoded token completes.
#include <dsv4/ops/cuda/compress_pool.cuh>

#include <support/device.cuh>

namespace {
using namespace dsv4;
using bench::D;

/// The entries that the last of a whole number of blocks complete.
void pool(benchmark::State& state, const model_config& c, attention_kind kind, bool backward) {
  const attention_config& a = c.attention;
  const bool overlap = kind == attention_kind::csa, decode = state.range(0) == bench::decode_rows;
  const std::int64_t m = a.compress_ratio(kind), head = a.head_dim, width = head * (overlap ? 2 : 1);
  const std::int64_t entries = decode ? 1 : state.range(0) / m, first = decode && overlap ? 1 : 0;
  const std::int64_t rows = (first + entries) * m;
  const auto kv = bench::random(rows, width), gate = bench::random(rows, width),
             bias = bench::random(m, width), y = bench::random(entries, head);
  const auto dkv = bench::zeros(rows, width), dgate = bench::zeros(rows, width),
             dbias = bench::zeros(m, width);
  const compress_pool<bf16, D>::inputs in{kv, gate, bias, 0, first, overlap};
  device_workspace scratch;
  bench::measure(state, [&] {
    if (backward)
      compress_pool<bf16, D>::backward(bench::policy(), scratch, in, {y}, {dkv, dgate, dbias});
    else
      compress_pool<bf16, D>::forward(bench::policy(), in, {y});
  });
  bench::report_elements(state, (backward ? 4 : 2) * rows * width + m * width + entries * head);
}

const bool added = [] {
  const std::pair<const char*, attention_kind> kinds[] = {{"csa", attention_kind::csa},
                                                          {"hca", attention_kind::hca}};
  for (const auto& [name, kind] : kinds) {
    const std::string op = std::string("compress_pool_") + name;
    bench::at_every_size(op + "/forward", {bench::decode_rows, bench::prompt_rows},
                         [kind = kind](auto& state, auto& c) { pool(state, c, kind, false); });
    bench::at_every_size(op + "/backward", {bench::prompt_rows},
                         [kind = kind](auto& state, auto& c) { pool(state, c, kind, true); });
  }
  return true;
}();
}  // namespace
