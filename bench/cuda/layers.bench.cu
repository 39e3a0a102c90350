// SPDX-License-Identifier: Apache-2.0
/// A whole layer of V4-Flash of each kind in bf16, with its experts and residual sites: a prompt, one token
/// in a long context, and a training step's passes, with random weights in the released formats and in bf16.
///
/// A layer is a model of one layer without its logits; a row of the embedding per token comes on top, and in
/// training the collapse before the head.
#include "support/device.cuh"
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/flops.hpp>
#include <dsv4/model/training.hpp>
#include <dsv4/model/transformer.hpp>

#include <array>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

using namespace dsv4;
using namespace dsv4::bench;

namespace {

constexpr std::int64_t prompt = 4096;

template <attention_kind K>
constexpr model_config one_layer = [] {
  model_config c = v4_flash;
  c.layers = schedule({K});
  c.moe.num_hash_layers = 0;
  c.num_nextn_predict_layers = 0;
  c.vocab_size = 1024;
  return c;
}();

constexpr const char* name_of(attention_kind k) {
  return k == attention_kind::sliding ? "sliding" : k == attention_kind::csa ? "CSA" : "HCA";
}

/// Gives weights of every storage random values: matrices of variance 1 / columns.
template <class Store>
class randomise {
 public:
  randomise(const exec::cuda& p, Store& store) : p_(p), store_(store) {}

  template <class T, int R>
  void operator()(const parameter_info&, view<T, R, D>& v) {
    p_.launch("bench", fill_kernel<T>, detail::loop_grid(p_, v.size(), 256), 256, 0, v.data, v.size(),
              seed_++, R == 1 ? 1.0f : size(v.extent[R - 1]));
  }
  template <class F>
  void operator()(const parameter_info& info, block_scaled_matrix<const F, D>& m) {
    m = narrow<F>(info.shape[0], info.shape[1]);
  }
  /// Experts are matrices of their own, output groups are parts of one.
  template <class F>
  void operator()(const parameter_info& info, block_scaled_stack<const F, D>& stack) {
    using matrix = block_scaled_matrix<const F, D>;
    const std::int64_t count = info.shape[0], rows = info.shape[1], columns = info.shape[2];
    buffer<matrix> table(count);
    if (info.name.find('*') != std::string::npos) {
      for (matrix& m : table) m = narrow<F>(rows, columns);
    } else {
      const matrix whole = narrow<F>(count * rows, columns);
      for (std::int64_t i = 0; i < count; ++i) table[i] = whole.rows(i * rows, rows);
    }
    matrix* const on_device = store_.template allocate<matrix>(count);
    copy_elements(p_.stream(), table.data(), on_device, count);
    p_.synchronise();
    stack.matrices = on_device;
    std::copy_n(info.shape.data(), 3, stack.extent);
  }

 private:
  static float size(std::int64_t columns) { return static_cast<float>(std::sqrt(3.0 / double(columns))); }
  template <class F>
  block_scaled_matrix<const F, D> narrow(std::int64_t rows, std::int64_t columns) {
    const block_scaled_matrix<F, D> m(
        store_.template allocate<std::uint8_t>(rows * F::row_bytes(columns)),
        store_.template allocate<e8m0>(F::scale_rows(rows) * F::scale_columns(columns)), rows, columns);
    fill_random(p_, m, size(columns));
    return m;
  }
  const exec::cuda& p_;
  Store& store_;
  unsigned seed_ = 1;
};

template <model_config C, numerics_config Q>
auto random_weights(const exec::cuda& p) {
  auto store = std::make_unique<parameter_store<C, bf16, Q, D>>();
  randomise fill(p, *store);
  for_each_parameter<C>(store->views(), fill);
  p.synchronise();
  return store;
}

device_buffer<std::int32_t> random_tokens(const exec::cuda& p, std::int64_t count, std::int64_t vocabulary) {
  buffer<std::int32_t> ids(count);
  for (std::int64_t i = 0; i < count; ++i) ids[i] = static_cast<std::int32_t>(i * 7919 % vocabulary);
  return to_device(p.stream(), ids);
}

void header(const char* what) {
  std::printf("\n%-52s %10s %13s %6s %8s\n", what, "ms", "workspace MB", "bound", "launches");
}
void report(const ceilings& c, const std::string& what, double ms, std::size_t workspace_bytes,
            double operations, double moved, std::size_t launches) {
  const double bound = std::max(operations / c.flops, moved / c.bytes) * 1e3;
  std::printf("%-52s %10.4f %13.1f %5.0f%% %8zu\n", what.c_str(), ms, double(workspace_bytes) * 1e-6,
              100 * bound / ms, launches);
  std::fflush(stdout);
}

/// Bytes of the layer's weights: all, or those that one token reads.
template <attention_kind K, numerics_config Q>
constexpr double weight_bytes(bool one_token) {
  double sum = 0;
  cost::for_each_layer_weight(v4_flash, K, false, [&](const cost::weight& w) {
    const double all = double(cost::bytes_of(w, Q, 2));
    sum += one_token && w.used > 0 ? all * double(w.used) / double(w.count) : all;
  });
  return sum;
}
/// Bytes of the cache that the token after `context` others reads.
template <attention_kind K>
constexpr double cache_bytes(std::int64_t context) {
  constexpr attention_config a = v4_flash.attention;
  const std::int64_t entries = K == attention_kind::sliding ? 0 : context / a.compress_ratio(K);
  const bool csa = K == attention_kind::csa;
  const std::int64_t attended = csa ? std::min<std::int64_t>(entries, a.index_topk) : entries;
  return 2.0 * double((a.sliding_window + attended) * a.head_dim + (csa ? entries * a.index_head_dim : 0));
}
/// Both sites read and write the residual streams.
constexpr double stream_bytes(std::int64_t rows) {
  return 2 * 2 * 2.0 * double(rows * v4_flash.hyper_connection.hc_mult * v4_flash.hidden_size);
}

template <attention_kind K, numerics_config Q>
void bench_forward(const exec::cuda& p, const ceilings& c) {
  constexpr model_config config = one_layer<K>;
  using model = transformer<config, bf16, Q, D>;
  const auto weights = random_weights<config, Q>(p);
  const auto ids = random_tokens(p, prompt, config.vocab_size);
  const std::string name = name_of(K);
  const auto measure = [&](std::int64_t context, std::int64_t rows) {
    typename model::state state;
    auto& cache = state.cache(0);
    cache.reserve(p, context + rows, 0);
    for (auto* entries : {&cache.main.entries, &cache.index.entries}) {
      const auto v = entries->view();
      if (v.data)
        p.launch("bench", fill_kernel<bf16>, detail::loop_grid(p, v.size(), 256), 256, 0, v.data, v.size(),
                 3u, 1.0f);
    }
    device_workspace w(std::size_t{3} << 30);
    const typename model::segment segment{&state, rows};
    const auto step = [&] {
      state.set_lengths(context, 0);  // the same step every time
      model::forward(p, w, weights->views(),
                     {std::span(&segment, 1), ids.as(prompt).rows(0, rows), logit_rows::none}, {});
    };
    const double ms = milliseconds(p, step);
    return std::tuple(ms, w.high_water(), launches(p, step));
  };
  {
    const auto [ms, bytes, count] = measure(0, prompt);
    report(c, name + ", prefill of 4096 tokens", ms, bytes,
           double(cost::prefill_flops(v4_flash, K, prompt).total().raw()),
           weight_bytes<K, Q>(false) + stream_bytes(prompt), count);
  }
  for (const std::int64_t context : {4096, 65536, 1 << 20}) {
    // The token that completes no entry; one in 4 (CSA) or 128 (HCA) does.
    const auto [ms, bytes, count] = measure(context, 1);
    report(c, name + ", decode after " + std::to_string(context) + " tokens", ms, bytes,
           double(cost::decode_flops(v4_flash, K, context).total().raw()),
           weight_bytes<K, Q>(true) + cache_bytes<K>(context) + stream_bytes(1), count);
  }
}

template <attention_kind K, numerics_config Q>
void bench_training(const exec::cuda& p, const ceilings& c, int repeats) {
  constexpr model_config config = one_layer<K>;
  using model = training<config, bf16, Q, recompute::nothing, D>;
  const auto weights = random_weights<config, Q>(p);
  parameter_store<config, bf16, numerics::float32, D> gradients;
  const auto ids = random_tokens(p, prompt, config.vocab_size);
  const auto dhidden = random<bf16>(p, prompt * config.hidden_size, 1e-3f);
  const std::int64_t offsets[] = {0, prompt};
  device_workspace kept(std::size_t{5} << 30), w(std::size_t{8} << 30);
  const auto context = model::context::take(kept, offsets, {});
  const typename model::inputs in{offsets, ids.as(prompt), ids.as(prompt), {}};
  const auto forward = [&] { model::forward(p, w, weights->views(), in, context); };
  const double first = milliseconds(p, forward, repeats);
  const auto step = [&] {
    forward();
    model::backward(p, w, weights->views(), in, context,
                    {dhidden.as(prompt, std::int64_t{config.hidden_size}), {}, {}}, gradients.views());
  };
  const double both = milliseconds(p, step, repeats);
  const double operations = double(cost::prefill_flops(v4_flash, K, prompt).total().raw());
  const std::string name = name_of(K);
  report(c, name + ", forward, keeping " + std::to_string(kept.high_water() / 1'000'000) + " MB", first,
         w.high_water(), operations, 0, launches(p, forward));
  report(c, name + ", forward and backward", both, w.high_water(), 3 * operations, 0, launches(p, step));
}

}  // namespace

int main() {
  const exec::cuda p;
  const ceilings c = ceilings::measure(p);
  std::printf(
      "bound: the larger of bf16 operations and bytes at the ceilings' rates; one CUDA graph, warm L2\n");
  header("released formats");
  bench_forward<attention_kind::sliding, numerics::v4_released>(p, c);
  bench_forward<attention_kind::csa, numerics::v4_released>(p, c);
  bench_forward<attention_kind::hca, numerics::v4_released>(p, c);
  header("training of 4096 tokens, weights in bf16");
  bench_training<attention_kind::sliding, numerics::float32>(p, c, 7);
  bench_training<attention_kind::csa, numerics::float32>(p, c, 7);
  bench_training<attention_kind::hca, numerics::float32>(p, c, 7);
  header("training of 4096 tokens, weights in the released formats");
  bench_training<attention_kind::sliding, numerics::v4_released>(p, c, 1);
  bench_training<attention_kind::csa, numerics::v4_released>(p, c, 1);
  bench_training<attention_kind::hca, numerics::v4_released>(p, c, 1);
}
